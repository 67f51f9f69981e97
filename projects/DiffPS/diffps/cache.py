# SPDX-License-Identifier: Apache-2.0
"""On-disk cache of the outputs of the frozen model.

    <root>/<kind>-<identity>/identity.json            what these entries depend on, readable
    <root>/<kind>-<identity>/3f/3f9c....safetensors   one entry, in one of 256 folders

The key of an entry is the digest of the image as the model receives it: resized, flipped and
otherwise transformed. An entry is therefore valid for any image and any transform, and a flipped
image has an entry of its own. ``identity`` is a digest of everything else that the values depend on
(weights, layers, timestep, ...), so models never read each other's entries.

Every entry carries its identity, its key and a checksum; a damaged or misplaced one is removed and
recomputed. Entries are written under another name and then renamed, so several processes can fill
and read one cache, and a killed run leaves at most a ``*.tmp`` file, which a later run removes.
"""

import errno
import hashlib
import json
import logging
import os
import re
import time
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from diffps.hooks import Layer
from diffps.latents import LatentNoiser
from diffps.text import TextConditioning
from person_search.utils.files import write_atomically

logger = logging.getLogger(__name__)

CACHE_KINDS = ("none", "latent", "feature", "compact")
_CONFIG_KEY = "MODEL.DIFFPS.BACKBONE"
_FORMAT = 1  # to be raised when the meaning of entries changes
_SUFFIX = ".safetensors"
_READERS = 4
_OLD_SECONDS = 3600  # no living process writes to a *.tmp file older than this
_RECOUNT = 256  # entries after which those of other processes are counted
_KEY = re.compile(r"[0-9a-f]{8,}")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class TensorCache:
    """Named tensors by key, on disk. Errors of the disk cost time, but do not end the run.

    Entries are never evicted: images come in random order, so every entry would be replaced before
    its first use.

    Args:
        root: Folder of all caches; created if it does not exist.
        kind: Readable name, for example ``latent``.
        identity: Everything except the key that the values depend on; must be JSON-serializable.
        max_bytes: Size from which on no entry is added; 0 for no limit.

    Raises:
        OSError: If the folder cannot be created.
    """

    def __init__(
        self, root: str | os.PathLike, kind: str, identity: dict[str, Any], max_bytes: int = 0
    ) -> None:
        identity = {"format": _FORMAT, "kind": kind, **identity}
        text = json.dumps(identity, indent=2, sort_keys=True)
        self.identity = hashlib.blake2b(text.encode(), digest_size=10).hexdigest()
        self.root, self.kind, self.max_bytes = Path(root), kind, max_bytes
        self.folder = self.root / f"{kind}-{self.identity}"
        self.hits = self.misses = 0
        self._writable = True
        self._since_count = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "identity.json").is_file():
            try:
                write_atomically(self.folder / "identity.json", (text + "\n").encode())
            except OSError as e:
                self._stop_writing(e)
        self._remove_leftovers()
        self.bytes, count = self._count()
        logger.info(f"{kind} cache {self.folder}: {count} entries, {self.bytes / 1e9:.2f} GB")
        others = [p for p in self.root.glob(f"{kind}-*") if p != self.folder and p.is_dir()]
        if others:
            logger.info(
                f"{self.root} also holds {kind} caches of {len(others)} other models or settings, "
                "which are not used here (identity.json describes each); delete those that you do "
                f"not need: {', '.join(sorted(p.name for p in others)[:5])}"
            )

    @property
    def is_writable(self) -> bool:
        """False once the limit was reached or an entry could not be written."""
        return self._writable

    def path(self, key: str) -> Path:
        """Returns the file of a key, which is a lower-case hexadecimal digest."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a cache key; keys are hexadecimal digests")
        return self.folder / key[:2] / (key + _SUFFIX)

    # ---- reading ------------------------------------------------------------------------------
    def get(self, key: str) -> dict[str, Tensor] | None:
        """Returns the tensors of a key, on the CPU; None if there is no valid entry."""
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            self.misses += 1
            return None
        except (OSError, SafetensorError, ValueError, KeyError) as e:
            self._reject(path, f"damaged ({e})")
            return None
        if (metadata.get("identity"), metadata.get("key")) != (self.identity, key):
            self._reject(path, "of another model or image")
            return None
        if metadata.get("checksum") != checksum(tensors):
            self._reject(path, "damaged (wrong checksum)")
            return None
        self.hits += 1
        return tensors

    def get_many(self, keys: Iterable[str]) -> list[dict[str, Tensor] | None]:
        """Returns :meth:`get` of several keys, read in parallel."""
        keys = list(keys)
        if len(keys) <= 1:
            return [self.get(key) for key in keys]
        with ThreadPoolExecutor(min(_READERS, len(keys))) as pool:
            return list(pool.map(self.get, keys))

    def __contains__(self, key: str) -> bool:
        """Returns whether there is an entry, valid or not."""
        return self.path(key).is_file()

    def count(self) -> int:
        """Returns the number of entries on disk."""
        return self._count()[1]

    def _reject(self, path: Path, why: str) -> None:
        self.misses += 1
        logger.warning(f"removing the cache entry {path}, which is {why}; it is recomputed")
        try:
            path.unlink(missing_ok=True)
        except OSError as e:  # a read-only disk
            self._stop_writing(e)

    # ---- writing ------------------------------------------------------------------------------
    def put(self, key: str, tensors: dict[str, Tensor]) -> bool:
        """Adds or replaces an entry, atomically.

        Returns:
            Whether the entry was written. False once the limit is reached or writing has failed,
            which is logged once.
        """
        if not self._writable:
            return False
        tensors = {name: x.detach().to("cpu").contiguous() for name, x in tensors.items()}
        size = sum(x.nbytes for x in tensors.values())
        if not self._has_room(size):
            return False
        metadata = {"identity": self.identity, "key": key, "checksum": checksum(tensors)}
        try:
            # with Python's file objects, whose errors name the cause
            write_atomically(self.path(key), save(tensors, metadata))
        except OSError as e:
            self._stop_writing(e)
            return False
        self.bytes += size
        self._since_count += 1
        return True

    def _has_room(self, size: int) -> bool:
        if not self.max_bytes:
            return True
        if self._since_count >= _RECOUNT:
            self.bytes, self._since_count = self._count()[0], 0
        if self.bytes + size <= self.max_bytes:
            return True
        logger.warning(
            f"the {self.kind} cache {self.folder} has reached its limit of "
            f"{self.max_bytes / 1e9:.2f} GB ({_CONFIG_KEY}.CACHE.MAX_GB): no more entries are added"
        )
        self._writable = False
        return False

    def _stop_writing(self, error: OSError) -> None:
        if not self._writable:
            return
        what = "the disk is full" if error.errno in _FULL else "writing failed"
        logger.warning(
            f"{what} ({error}): no more entries are added to the {self.kind} cache {self.folder}. "
            "The run continues and computes what is missing. Free some space, or set "
            f"{_CONFIG_KEY}.CACHE.DIR to another disk or CACHE.MAX_GB to a limit."
        )
        self._writable = False

    # ---- housekeeping -------------------------------------------------------------------------
    def _remove_leftovers(self) -> None:
        for path in self.folder.rglob("*.tmp"):
            try:
                if time.time() - path.stat().st_mtime > _OLD_SECONDS:
                    path.unlink()
            except OSError:
                continue  # removed by another process, or a read-only disk

    def _count(self) -> tuple[int, int]:
        """Returns the bytes and the number of all entries."""
        sizes = []
        for path in self.folder.rglob(f"*{_SUFFIX}"):
            try:
                sizes.append(path.stat().st_size)
            except OSError:
                continue  # removed by another process, or a dangling link
        return sum(sizes), len(sizes)


def open_cache(
    config: CfgNode,
    vae: nn.Module,
    unet: nn.Module,
    text: TextConditioning,
    noiser: LatentNoiser,
    layers: list[Layer],
) -> dict[str, TensorCache]:
    """Opens the cache that the config asks for.

    Args:
        config: ``MODEL.DIFFPS.BACKBONE``.
        vae: VAE as loaded; a later fallback to float32 does not change the meaning of entries.
        unet: UNet as loaded.
        text: Condition of the UNet.
        noiser: Source of the latents.
        layers: Layers whose activations a feature cache holds; for a compact cache their sources.

    Returns:
        The cache by argument name of ``DiffusionBackbone``; empty without a cache.

    Raises:
        ValueError: If the kind is unknown, the folder is not set, or features are not repeatable.
        OSError: If the folder cannot be created; the message names the config key.
    """
    cache = config.CACHE
    if cache.KIND not in CACHE_KINDS:
        raise ValueError(f"{_CONFIG_KEY}.CACHE.KIND is {cache.KIND!r}; allowed: {CACHE_KINDS}")
    if cache.KIND == "none":
        return {}
    if not cache.DIR:
        raise ValueError(f"{_CONFIG_KEY}.CACHE.KIND is {cache.KIND!r}, but CACHE.DIR is empty.")
    identity = {"vae": weights_digest(vae), "dtype": config.DTYPE}
    if cache.KIND != "latent":
        if not noiser.is_repeatable:
            raise ValueError(
                f"{_CONFIG_KEY}.CACHE.KIND {cache.KIND!r} would freeze one draw of the noise. Set "
                "NOISE to 'seeded', or to 'none' with VAE_SAMPLE False; now NOISE is "
                f"{config.NOISE!r} and VAE_SAMPLE {config.VAE_SAMPLE}."
            )
        identity |= {
            "unet": weights_digest(unet),
            "prompt": config.PROMPT,
            "context": _digest(text.context.detach().double().cpu().contiguous().numpy()),
            "token": text.token,
            "layers": [layer.name for layer in layers],
            "heads": list(config.ATTN.HEADS),
            "timestep": config.TIMESTEP,
            "alpha_bar": noiser.alpha_bar,
            "scale": noiser.scale,
            "noise": config.NOISE,
            "vae_sample": config.VAE_SAMPLE,
            "upcast": config.UPCAST_ATTENTION,
        }
    try:
        folder = os.path.expanduser(cache.DIR)
        opened = TensorCache(folder, cache.KIND, identity, int(cache.MAX_GB * 1e9))
    except OSError as e:
        reason = f"{_CONFIG_KEY}.CACHE.DIR cannot be used, {e.strerror}; set another folder"
        raise type(e)(e.errno, reason, cache.DIR) from e
    return {"latent_cache" if cache.KIND == "latent" else "feature_cache": opened}


def checksum(tensors: dict[str, Tensor]) -> str:
    """Returns the CRC-32 of names and bytes, which detects disk errors but not tampering."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensors[name].contiguous().flatten().view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


@torch.no_grad()
def weights_digest(module: nn.Module, per_tensor: int = 64) -> str:
    """Returns a digest of names, shapes, types and a sample of the values of all weights.

    It takes milliseconds for a model of a billion weights; fine-tuning changes the sample.
    """
    digest = hashlib.blake2b(digest_size=20)
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        flat = weight.flatten()
        sample = flat[:: max(1, len(flat) // per_tensor)][: per_tensor + 1]
        digest.update(sample.double().cpu().numpy().tobytes())
    return digest.hexdigest()


def _digest(values: Any) -> str:
    return hashlib.blake2b(values.tobytes(), digest_size=20).hexdigest()
