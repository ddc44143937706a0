"""Each sample belongs to one rank; every epoch has its own order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.data import Shard
from hpcasync.errors import UsageError


def shards(n: int, size: int, batch_size: int = 1, seed: int = 0) -> list[Shard]:
    x = torch.arange(n)
    return [Shard(x, -x, rank, size, batch_size, seed) for rank in range(size)]


def seen(shard: Shard) -> list[int]:
    return [int(value) for x, _ in shard for value in x]


@given(st.integers(1, 8), st.integers(0, 40), st.integers(0, 2**32), st.integers(0, 5))
def test_every_sample_belongs_to_exactly_one_rank(size, extra, seed, epoch):
    n = size + extra
    counts, union = [], []
    for shard in shards(n, size, seed=seed):
        shard.set_epoch(epoch)
        own = seen(shard)
        counts.append(len(own))
        union += own
    assert sorted(union) == list(range(n))
    assert max(counts) - min(counts) <= 1


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 30))
def test_batches_are_full_and_counted(size, batch_size, extra):
    for shard in shards(size * batch_size + extra, size, batch_size):
        batches = list(shard)
        assert len(batches) == len(shard) == len(shard.indices) // batch_size
        assert {len(x) for x, _ in batches} == {batch_size}
        assert all(torch.equal(x, -y) for x, y in batches)


def test_an_epoch_can_be_repeated_and_the_next_differs():
    (shard,) = shards(100, 1)
    first = seen(shard)
    assert seen(shard) == first
    shard.set_epoch(1)
    assert seen(shard) != first
    shard.set_epoch(0)
    assert seen(shard) == first


def test_the_order_depends_on_seed_and_rank():
    (one,), (other,) = shards(100, 1, seed=1), shards(100, 1, seed=2)
    assert seen(one) != seen(other)
    left, right = shards(200, 2)
    positions = [[sorted(shard.indices).index(value) for value in seen(shard)] for shard in (left, right)]
    assert positions[0] != positions[1]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_at_least_one_sample(batch_size):
    with pytest.raises(UsageError, match=f"batch size {batch_size}: expected at least 1"):
        shards(10, 1, batch_size)


def test_a_shard_smaller_than_a_batch_is_refused():
    Shard(torch.zeros(7), torch.zeros(7), rank=0, size=2, batch_size=4)
    with pytest.raises(UsageError, match="batch size 4: 7 samples on 2 ranks leave rank 1 only 3"):
        Shard(torch.zeros(7), torch.zeros(7), rank=1, size=2, batch_size=4)
