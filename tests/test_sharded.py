"""A vector sharded over the ranks' windows: what is exchanged adds up, near and far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hpcasync.strategies.sharded import PIECE_ELEMENTS, Sharded
from hpcasync.world import World

pytestmark = pytest.mark.timeout(60)

Ranks = Callable[..., list[Any]]


@pytest.mark.parametrize("length", [1, 40, 3 * PIECE_ELEMENTS + 5])
def test_exchanges_add_up_and_leave_values_and_anchor_at_the_sum(ranks: Ranks, length: int) -> None:
    """Rank r adds r + 1 in each of 5 exchanges: the sum is 5 n(n + 1)/2 above the start, and nobody misses its own."""

    def main(world: World) -> None:
        start = torch.arange(length) % 7.0
        center = Sharded(world, start)
        world.barrier()
        values, anchor = start.clone(), start.clone()
        for turn in range(1, 6):
            values += world.rank + 1
            center.exchange(values, anchor)
            assert torch.equal(values, anchor)
            assert (values - start).min() >= turn * (world.rank + 1)
        world.barrier()
        center.exchange(values, anchor)
        assert torch.equal(values, start + 5 * world.size * (world.size + 1) / 2)
        assert torch.equal(values, anchor)

    ranks(main)


def test_a_near_part_is_reached_when_the_verb_returns(ranks: Ranks) -> None:
    """One's own part is near wherever windows are memory; what is not near needs flush()."""

    def main(world: World) -> None:
        window = world.window(1, torch.int64)
        target, one = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
        for rank in range(world.size):
            window.push(one, rank)
            if not window.near(rank):
                window.flush()
            window.pull(target, rank)
            if not window.near(rank):
                window.flush()
            assert 1 <= int(target) <= world.size
        world.barrier()
        assert int(window.local) == world.size

    ranks(main)
