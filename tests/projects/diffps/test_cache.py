# SPDX-License-Identifier: Apache-2.0
"""Caches on disk: valid entries are read, everything else is recomputed."""

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
import time

import pytest
import torch
from diffps_tiny import tiny_backbone
from safetensors.torch import load_file, save_file

from diffps.cache import TensorCache, checksum, weights_digest
from diffps.tiny import write_tiny_diffusion

KEY = "3f" * 20


def make(root, **kwargs):
    return TensorCache(root, "latent", {"vae": "a"}, **kwargs)


def entry(seed=0, size=50):
    g = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(3, size, generator=g),
        "b": torch.randn(2, 2, generator=g).half(),
        "c": torch.randn(4, generator=g).bfloat16(),
    }


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[k], second[k]) and first[k].dtype == second[k].dtype for k in first
    )


# ---- the store ----------------------------------------------------------------------------------
def test_entries_are_read_in_the_same_and_in_another_run(tmp_path):
    cache = make(tmp_path)
    assert cache.get(KEY) is None and KEY not in cache
    assert cache.put(KEY, entry())
    assert same(cache.get(KEY), entry()) and KEY in cache
    assert (cache.hits, cache.misses) == (1, 1)
    again = make(tmp_path)
    assert same(again.get(KEY), entry()) and again.count() == 1
    assert again.path(KEY).parent.name == KEY[:2]


def test_parts_of_larger_tensors_are_stored_alone(tmp_path):
    cache, batch = make(tmp_path), torch.randn(50, 100)
    cache.put(KEY, {"x": batch[1], "y": batch.T[2]})
    assert same(cache.get(KEY), {"x": batch[1], "y": batch.T[2]})
    assert cache.path(KEY).stat().st_size < 1500


def test_many_keys_keep_their_order(tmp_path):
    cache, keys = make(tmp_path), [f"{i:08x}" for i in range(12)]
    for i, key in enumerate(keys):
        if i != 5:
            cache.put(key, entry(i))
    got = cache.get_many(keys)
    assert got[5] is None
    assert all(same(x, entry(i)) for i, x in enumerate(got) if i != 5)
    assert cache.get_many([]) == []


@pytest.mark.parametrize("key", ["../../etc/passwd", "", "abc", "ABCDEF0123"])
def test_keys_are_digests(tmp_path, key):
    with pytest.raises(ValueError, match="is not a cache key"):
        make(tmp_path).get(key)


# ---- damage -------------------------------------------------------------------------------------
def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def other_file(path):
    save_file(entry(), path)  # sound, but without identity, key and checksum


def dangling_link(path):
    path.unlink()
    path.symlink_to("/nowhere/entry")


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty, other_file])
def test_a_damaged_entry_is_removed_and_recomputed(tmp_path, caplog, damage):
    cache = make(tmp_path)
    cache.put(KEY, entry())
    damage(cache.path(KEY))
    assert cache.get(KEY) is None and KEY not in cache
    assert "recomputed" in caplog.text and KEY in caplog.text
    assert cache.put(KEY, entry()) and same(cache.get(KEY), entry())


def test_unusual_entries_do_not_end_the_run(tmp_path, caplog):
    """A link to a removed file, an entry that another process removes while counting, a folder."""
    cache, other = make(tmp_path), "3f" * 19 + "40"
    cache.put(KEY, entry())
    cache.put(other, entry())
    dangling_link(cache.path(KEY))
    again = make(tmp_path)
    assert again.count() == 1 and again.get(KEY) is None
    assert again.put(KEY, entry()) and same(again.get(KEY), entry())
    cache.path(other).unlink()
    cache.path(other).mkdir()
    assert again.get(other) is None and not again.is_writable
    assert same(again.get(KEY), entry()) and "no more entries are added" in caplog.text


def test_the_folder_may_start_with_the_home_folder(tiny_sd, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    backbone = tiny_backbone(tiny_sd, CACHE__KIND="latent", CACHE__DIR="~/cache")
    assert backbone.cache.root == tmp_path / "cache"


def test_an_entry_under_the_name_of_another_is_refused(tmp_path, caplog):
    cache, other = make(tmp_path), "3f" * 19 + "40"
    cache.put(KEY, entry())
    shutil.copy(cache.path(KEY), cache.path(other))
    assert cache.get(other) is None and "of another model or image" in caplog.text
    assert cache.get(KEY) is not None


def test_entries_of_another_model_are_never_seen(tmp_path, caplog):
    caplog.set_level("INFO")
    first = make(tmp_path)
    first.put(KEY, entry())
    second = TensorCache(tmp_path, "latent", {"vae": "b"})
    assert second.get(KEY) is None
    assert "other models or settings, which are not used here" in caplog.text
    assert first.folder.name in caplog.text
    # not even if they are moved there
    shutil.rmtree(second.folder)
    shutil.copytree(first.folder, second.folder)
    assert second.get(KEY) is None and "of another model or image" in caplog.text


def test_identity_is_written_down(tmp_path):
    written = json.loads((make(tmp_path).folder / "identity.json").read_text())
    assert written == {"format": 1, "kind": "latent", "vae": "a"}


def test_checksum_sees_names_and_values():
    one, two = torch.zeros(3), torch.tensor([0.0, 0.0, 1e-30])
    sums = [checksum(x) for x in ({"a": one}, {"b": one}, {"a": two}, {"a": one, "b": one})]
    assert len(set(sums)) == 4


# ---- limits and full disks ----------------------------------------------------------------------
def test_nothing_is_added_beyond_the_limit(tmp_path, caplog):
    size = sum(x.nbytes for x in entry().values())
    cache = make(tmp_path, max_bytes=2 * size + 600)
    keys = [f"{i:08x}" for i in range(4)]
    assert [cache.put(key, entry(i)) for i, key in enumerate(keys)] == [True, True, False, False]
    assert sum("has reached its limit" in r.message for r in caplog.records) == 1
    assert same(cache.get(keys[0]), entry(0)) and cache.count() == 2
    # what is there counts in the next run as well
    assert not make(tmp_path, max_bytes=2 * size).put(keys[2], entry(2))


def test_a_full_disk_is_logged_once_and_the_run_continues(tmp_path, caplog, monkeypatch):
    cache = make(tmp_path)
    cache.put(KEY, entry())

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert not cache.put("ab" * 20, entry(1)) and not cache.put("cd" * 20, entry(2))
    messages = [r.message for r in caplog.records if r.levelname != "INFO"]
    assert len(messages) == 1 and "the disk is full" in messages[0]
    assert "The run continues" in messages[0] and "CACHE.MAX_GB" in messages[0]
    assert not list(tmp_path.rglob("*.tmp"))
    assert same(cache.get(KEY), entry())


def test_a_failed_write_leaves_no_file(tmp_path, caplog):
    cache = make(tmp_path)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        assert not cache.put(KEY, entry(size=5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert "writing failed" in caplog.text
    assert [p.name for p in cache.folder.rglob("*") if p.is_file()] == ["identity.json"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    cache = make(tmp_path)
    cache.put(KEY, entry())
    old, fresh = (cache.path(KEY).with_name(name) for name in ("old.tmp", "fresh.tmp"))
    for path in (old, fresh):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    make(tmp_path)
    assert not old.exists() and fresh.exists()  # another process may be writing the latter


def fill(root):
    """Work of one of several processes; runs in a child process."""
    cache = make(root)
    for i in range(60):
        found = cache.get(f"{i:08x}")
        assert found is None or found["x"].eq(i).all()
        assert cache.put(f"{i:08x}", {"x": torch.full((2000,), i)})


def test_several_processes_fill_one_cache(tmp_path):
    # forked, since importing takes a hundred times as long; small tensors start no threads
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=fill, args=(tmp_path,)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    cache = make(tmp_path)
    assert cache.count() == 60 and not list(tmp_path.rglob("*.tmp"))
    for i, found in enumerate(cache.get_many(f"{i:08x}" for i in range(60))):
        assert found["x"].eq(i).all()


# ---- in the backbone ----------------------------------------------------------------------------
def images(count=2, size=(64, 128)):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def cached(folder, root, kind, **overrides):
    return tiny_backbone(folder, CACHE__KIND=kind, CACHE__DIR=str(root), **overrides)


def same_features(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("kind", ["latent", "feature"])
def test_cached_results_are_the_same(tiny_sd, tmp_path, kind):
    plain = tiny_backbone(tiny_sd)(images())
    first = cached(tiny_sd, tmp_path, kind)
    assert same_features(first(images()), plain)
    again = cached(tiny_sd, tmp_path, kind)
    # what must not be needed any more
    parts = again._frozen[:1] if kind == "latent" else again._frozen
    for part in parts:
        part.forward = part.encode = None
    assert same_features(again(images()), plain)
    cache = again.cache
    assert (cache.hits, cache.misses, cache.count()) == (2, 0, 2)


@pytest.mark.parametrize("kind", ["latent", "feature"])
def test_hits_and_misses_may_be_mixed_in_a_batch(tiny_sd, tmp_path, kind):
    backbone = cached(tiny_sd, tmp_path, kind)
    backbone(images()[1:])
    features = backbone(images())
    expected = tiny_backbone(tiny_sd)(images())
    for name, x in features.items():
        torch.testing.assert_close(x, expected[name], atol=2e-4, rtol=2e-4)


# ---- compact: hidden states instead of what they are projected to -------------------------------
EVERY_KIND = ["u1r2_q", "u3r0_k", "u3r0_v", "u3r0_q", "u2r1_xq", "u1r0_vit", "d1r0_res"]


@pytest.mark.parametrize("overrides", [{}, {"OUT_FEATURES": EVERY_KIND, "ATTN__LAYERS": []}])
def test_compact_entries_give_the_same_features(tiny_sd, tmp_path, overrides):
    expected = tiny_backbone(tiny_sd, **overrides)(images())
    fresh = cached(tiny_sd, tmp_path, "compact", **overrides)(images())
    again = cached(tiny_sd, tmp_path, "compact", **overrides)
    for part in again._frozen:
        part.forward = part.encode = None
    read = again(images())
    assert list(fresh) == list(read) == list(expected) and again.cache.hits == 2
    for name, x in expected.items():
        torch.testing.assert_close(fresh[name], x, atol=1e-5, rtol=1e-5)
        assert torch.equal(read[name], fresh[name])


def test_compact_entries_hold_each_hidden_state_once(tiny_sd, tmp_path):
    for kind in ("feature", "compact"):
        cached(tiny_sd, tmp_path / kind, kind)(images(1), keys=[KEY])
    (feature,), (compact,) = ((tmp_path / kind).rglob("*.safetensors") for kind in
                              ("feature", "compact"))  # fmt: skip
    stored = load_file(compact)
    assert sorted(stored) == ["u1r2_n", "u2r1_n", "u2r2_n", "u3r0_map", "u3r0_n", "u3r1_n"]
    # widths 32, 24, 16 at strides 32, 16, 8: of four activations of 16 channels, two remain
    cells = 64 * 128 // 64
    saved = 4 * 2 * 16 * cells
    assert sum(x.nbytes for x in load_file(feature).values()) - saved == sum(
        x.nbytes for x in stored.values()
    )


@pytest.mark.parametrize("dtype, limit", [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_compact_entries_in_half_precision(tiny_sd, tmp_path, dtype, limit):
    """As accurate as a feature cache of that type."""
    expected = cached(tiny_sd, tmp_path, "feature", DTYPE=dtype)(images(1))
    got = cached(tiny_sd, tmp_path, "compact", DTYPE=dtype)(images(1))
    for name, x in expected.items():
        assert (got[name] - x).norm() / x.norm() < limit, name


def test_projection_beyond_float16_comes_in_float32(tiny_sd, tmp_path):
    backbone = cached(tiny_sd, tmp_path, "compact", DTYPE="float16")
    small = backbone(images(1), keys=[KEY])["u3r1_k"]
    attn = backbone._frozen[1].get_submodule("up_blocks.3.attentions.1.transformer_blocks.0.attn1")
    with torch.no_grad():
        attn.to_k.weight *= 2**17 / 4
        attn.to_k.weight *= 4
    large = backbone(images(1), keys=[KEY])["u3r1_k"]
    assert large.isfinite().all() and large.max() > 65504
    assert (large / 2**17 - small).norm() / small.norm() < 1e-2


def test_flipped_images_are_entries_of_their_own(tiny_sd, tmp_path):
    backbone = cached(tiny_sd, tmp_path, "feature")
    backbone(images(1))
    flipped = backbone(images(1).flip(3))
    assert backbone.feature_cache.count() == 2
    assert same_features(flipped, tiny_backbone(tiny_sd)(images(1).flip(3)))


def test_padding_is_not_part_of_an_image(tiny_sd, tmp_path):
    backbone = cached(tiny_sd, tmp_path, "feature")
    backbone(images(1, (60, 64)), [(60, 64)])
    wide = torch.zeros(1, 3, 64, 128)
    wide[:, :, :60, :64] = images(1, (60, 64))
    backbone(wide, [(60, 64)])
    assert (backbone.feature_cache.hits, backbone.feature_cache.count()) == (1, 1)


def test_keys_given_are_used(tiny_sd, tmp_path):
    backbone = cached(tiny_sd, tmp_path, "latent")
    backbone(images(), keys=[KEY, None])
    assert KEY in backbone.latent_cache and backbone.latent_cache.count() == 2


def test_a_damaged_entry_is_rebuilt_during_the_run(tiny_sd, tmp_path, caplog):
    backbone = cached(tiny_sd, tmp_path, "feature")
    expected = backbone(images(1), keys=[KEY])
    cut(backbone.feature_cache.path(KEY))
    assert same_features(backbone(images(1), keys=[KEY]), expected)
    assert "recomputed" in caplog.text and backbone.feature_cache.get(KEY) is not None


def test_half_precision_is_stored_as_it_is(tiny_sd, tmp_path):
    for kind in ("latent", "feature"):
        backbone = cached(tiny_sd, tmp_path, kind, DTYPE="bfloat16")
        expected = backbone(images(1), keys=[KEY])
        assert same_features(backbone(images(1), keys=[KEY]), expected)
        cache = backbone.cache
        stored = load_file(cache.path(KEY))
        dtypes = {name: x.dtype for name, x in stored.items()}
        assert dtypes.pop("u3r0_map", torch.float32) == torch.float32
        assert set(dtypes.values()) == {torch.bfloat16}


@pytest.mark.parametrize(
    "kind, change",
    [
        ("latent", {"DTYPE": "bfloat16"}),
        ("feature", {"OUT_FEATURES": ["u3r0_k"]}),
        ("feature", {"TIMESTEP": 10}),
        ("feature", {"PROMPT": "shoes"}),
        ("feature", {"ATTN__HEADS": [0]}),
        ("feature", {"NOISE": "seeded"}),
        ("compact", {"OUT_FEATURES": ["u3r0_k"]}),
        ("compact", {"TIMESTEP": 10}),
    ],
)
def test_other_settings_have_other_entries(tiny_sd, tmp_path, kind, change):
    cached(tiny_sd, tmp_path, kind)(images(1))
    other = cached(tiny_sd, tmp_path, kind, **change)
    other(images(1))
    assert other.cache.hits == 0


@pytest.mark.parametrize("kind", ["latent", "feature"])
def test_a_cache_built_by_another_model_is_not_used(tiny_sd, tmp_path, kind):
    cached(tiny_sd, tmp_path / "cache", kind)(images(1))
    other_folder = write_tiny_diffusion(tmp_path / "other", seed=1)
    other = cached(other_folder, tmp_path / "cache", kind)
    assert same_features(other(images(1)), tiny_backbone(other_folder)(images(1)))
    assert other.cache.hits == 0


def test_latents_are_shared_by_settings_that_do_not_concern_them(tiny_sd, tmp_path):
    cached(tiny_sd, tmp_path, "latent")(images(1))
    other = cached(tiny_sd, tmp_path, "latent", TIMESTEP=10, NOISE="random", VAE_SAMPLE=True)
    other(images(1))
    assert other.latent_cache.hits == 1


def test_a_folder_that_cannot_be_made_is_named_with_its_key(tiny_sd, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"CACHE\.DIR cannot be used, (Not a|File exists).*/file"):
        cached(tiny_sd, tmp_path / "file", "latent")


def test_weights_digest_sees_every_tensor():
    def digest(change=None):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(300, 40), torch.nn.Linear(40, 3))
        if change:
            with torch.no_grad():
                change(net)
        return weights_digest(net)

    assert digest() == digest()
    changes = [
        lambda net: net[0].weight.mul_(1.01),
        lambda net: net[1].bias.add_(1e-3),
        lambda net: net.to(torch.bfloat16),
        lambda net: setattr(net[1], "bias", None),
    ]
    assert len({digest(), *map(digest, changes)}) == 5
