# SPDX-License-Identifier: Apache-2.0
"""The order of training samples, against a literal reading of its definition."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from person_search.data.samplers import ResumableBatchSampler, sample_seed


def take(sampler: ResumableBatchSampler, steps: int) -> list[list[tuple[int, int]]]:
    return list(islice(sampler, steps))


def make(size: int, batch_size: int, start: int = 0, **kwargs) -> ResumableBatchSampler:
    kwargs = {"seed": 3, "rank": 0, "world_size": 1, **kwargs}
    sampler = ResumableBatchSampler(size, batch_size, **kwargs)
    sampler.start_step = start
    return sampler


def literal_groups(stream, landscape, batch_size):
    """Slow reference of grouping: look for the first complete group, remove it, repeat."""
    waiting, groups = [], []
    for sample in stream:
        waiting.append(sample)
        for kind in (False, True):
            same = [s for s in waiting if landscape[s[0]] == kind]
            if len(same) == batch_size:
                groups.append(same)
                waiting = [s for s in waiting if s not in same]
    return groups


def test_unshuffled_stream_repeats_the_data_set() -> None:
    batches = take(make(3, 2, shuffle=False), 3)
    assert batches == [[(0, 0), (1, 1)], [(2, 2), (0, 3)], [(1, 4), (2, 5)]]


def test_each_epoch_is_another_permutation() -> None:
    samples = [sample for batch in take(make(20, 5), 8) for sample in batch]
    first, second = [i for i, _ in samples[:20]], [i for i, _ in samples[20:]]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second != list(range(20)) != first
    assert [n for _, n in samples] == list(range(40))


def test_seed_decides_the_order() -> None:
    assert take(make(20, 5), 4) == take(make(20, 5), 4)
    assert take(make(20, 5), 4) != take(make(20, 5, seed=4), 4)


@given(
    size=st.integers(1, 12),
    per_process=st.integers(1, 4),
    world_size=st.integers(1, 3),
    start=st.integers(0, 15),
    grouped=st.booleans(),
    data=st.data(),
)
def test_starting_late_equals_skipping(size, per_process, world_size, start, grouped, data) -> None:
    kinds = st.lists(st.booleans(), min_size=size, max_size=size)
    landscape = data.draw(kinds) if grouped else None
    batch_size = per_process * world_size
    for rank in range(world_size):
        kwargs = {"landscape": landscape, "rank": rank, "world_size": world_size}
        whole = take(make(size, batch_size, **kwargs), start + 3)
        assert take(make(size, batch_size, start, **kwargs), 3) == whole[start:]


@given(size=st.integers(1, 12), world_size=st.integers(1, 4), grouped=st.booleans())
def test_processes_share_the_batches_of_a_single_one(size, world_size, grouped) -> None:
    landscape = [i % 3 == 0 for i in range(size)] if grouped else None
    single = take(make(size, 4 * world_size, landscape=landscape), 5)
    parts = [
        take(make(size, 4 * world_size, landscape=landscape, rank=r, world_size=world_size), 5)
        for r in range(world_size)
    ]
    for step, batch in enumerate(single):
        shares = [part[step] for part in parts]
        assert all(len(share) == 4 for share in shares)
        assert sorted(s for share in shares for s in share) == sorted(batch)


def test_grouping_equals_the_literal_one() -> None:
    landscape = [True, False, False, True, False, False, True]
    stream = [s for batch in take(make(7, 7), 12) for s in batch]
    expected = literal_groups(stream, landscape, 3)
    got = take(make(7, 3, landscape=landscape), len(expected))
    assert got == expected
    assert all(len({landscape[i] for i, _ in batch}) == 1 for batch in got)


def test_resume_takes_over_seed_and_position() -> None:
    first, second = make(10, 4, seed=5), make(10, 4, seed=6)
    assert second.resume(first.state_dict(), 3) == []
    assert take(second, 2) == take(first, 5)[3:]


def test_resume_with_another_batch_size_continues_after_the_same_images() -> None:
    second = make(10, 2)
    assert second.resume(make(10, 4).state_dict(), 3) == ["batch_size"]
    assert take(second, 1)[0] == take(make(10, 4), 4)[3][:2]


def test_resume_from_a_file_without_sampler_state() -> None:
    sampler = make(10, 2)
    assert sampler.resume({}, 4) == []
    assert take(sampler, 1) == take(make(10, 2), 5)[4:]


@pytest.mark.parametrize(
    ("size", "batch_size", "landscape", "text"),
    [
        (0, 2, None, "0 records"),
        (5, 3, None, "SOLVER.IMS_PER_BATCH is 3.*BASE_LR, MAX_ITER.*REFERENCE_WORLD_SIZE"),
        (5, 0, None, "SOLVER.IMS_PER_BATCH is 0"),
        (5, 2, [True], "1 entries for 5"),
    ],
)
def test_wrong_arguments(size, batch_size, landscape, text) -> None:
    with pytest.raises(ValueError, match=text):
        ResumableBatchSampler(size, batch_size, seed=0, landscape=landscape, rank=0, world_size=2)


def test_sample_seeds_differ_and_fit() -> None:
    seeds = {sample_seed(s, n) for s in range(20) for n in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(1, 2) == sample_seed(1, 2)
