"""SimWorld: an error ends all ranks, a deadlock says who waits for what, misuse is named."""

from __future__ import annotations

import math

import pytest
import torch

from hpcasync.errors import UsageError
from hpcasync.sim import simulate
from hpcasync.world import Deadlock, WorldError


def test_an_error_in_one_rank_ends_all_and_names_it():
    unwound = []

    def main(world):
        try:
            world.computed(0.0)
            if world.rank == 2:
                raise ValueError("no")
            world.barrier()
        finally:
            unwound.append(world.rank)
            if world.rank != 2:
                world.barrier()  # must neither wait nor replace the error

    with pytest.raises(ValueError, match="no") as caught:
        simulate(main, 4)
    assert caught.value.__notes__ == ["raised by simulated rank 2 at 1 s of virtual time"]
    assert 2 in unwound and set(unwound) <= {0, 1, 2, 3}


def test_deadlock_names_who_waits_for_what():
    heard = []

    def main(world):
        window = world.window(1)
        try:
            if world.rank == 0:
                world.allreduce(torch.ones(3))
            elif world.rank == 1:
                world.iallreduce(torch.ones(3)).wait()
            elif world.rank == 2:
                world.wait_until(lambda: window.local[0] == 1)
        except Deadlock as deadlock:
            heard.append(world.rank)
            with pytest.raises(Deadlock):
                world.barrier()
            raise deadlock

    with pytest.raises(Deadlock) as caught:
        simulate(main, 4)
    message = str(caught.value)
    assert message.startswith("nobody can go on at 0 s: ")
    missing = "allreduce of 3 torch.float32 (2 of 4 have come; missing: rank 2, rank 3 (returned))"
    assert f"rank 0 waits in {missing}" in message
    assert f"rank 1 waits in {missing}" in message
    assert "rank 2 waits in wait_until(" in message and __file__ in message
    assert heard == [0, 1, 2]


def test_a_deadlock_of_many_is_still_one_readable_line():
    def main(world):
        if world.rank > 0:
            world.barrier()
        else:
            world.wait_until(lambda: False)

    with pytest.raises(Deadlock, match=r"; and 84 more$") as caught:
        simulate(main, 100)
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (lambda w: w.barrier(), lambda w: w.window(1), "calls .* where rank . has called"),
        (lambda w: w.allreduce(torch.ones(3)), lambda w: w.allreduce(torch.ones(4)), "allreduce of 4 torch.float32"),
        (lambda w: w.window(1), lambda w: w.window(1, torch.int64), "window of torch.int64"),
        (lambda w: w.shared(1), lambda w: w.shared(2), "shared of 2"),
        (lambda w: w.broadcast(torch.ones(1)), lambda w: w.broadcast(torch.ones(1), 1), "from rank 1"),
    ],
)
def test_collectives_that_do_not_match_are_an_error(first, second, message):
    def main(world):
        (first if world.rank == 0 else second)(world)

    with pytest.raises(WorldError, match=message):
        simulate(main, 2)


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda world, window: window.push(torch.ones(1), 2), "push: rank 2 is not one of 0 to 1"),
        (lambda world, window: window.pull(torch.ones(2), 1, 3), r"shape \(2,\) at offset 3 .* part of shape \(4,\)"),
        (lambda world, window: window.take(torch.ones(1), 1, -1), "offset -1"),
        (lambda world, window: window.push(torch.ones(1).double(), 1), "torch.float64 for a window of torch.float32"),
        (lambda world, window: window.push(torch.ones(4)[::2], 1), "is not contiguous"),
        (lambda world, window: window.push(torch.ones(2, 2), 1), r"shape \(2, 2\)"),
        (lambda world, window: world.allreduce(torch.ones(4)[::2]), "is not contiguous"),
        (lambda world, window: world.allreduce(torch.ones(1).bool()), "torch.bool has no sum"),
        (lambda world, window: world.broadcast(torch.ones(1), 5), "root 5 is not one of 0 to 1"),
        (lambda world, window: world.window(-1), "length of -1"),
        (lambda world, window: world.shared(-1), "length of -1"),
    ],
)
def test_misuse_is_named(misuse, message):
    def main(world):
        misuse(world, world.window(4))

    with pytest.raises(UsageError, match=message):
        simulate(main, 2)


def test_what_was_freed_or_closed_is_no_more():
    def main(world):
        window = world.window(1)
        window.free()
        with pytest.raises(WorldError, match="push: the window was freed"):
            window.push(torch.ones(1), 0)
        world.close()
        with pytest.raises(WorldError, match="this World was closed"):
            world.barrier()

    simulate(main, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size=0: there is at least 1 rank"),
        ({"seed": -1}, "seed=-1"),
        ({"alpha": -1.0}, "alpha=-1.0: it is 0 or more"),
        ({"beta": math.nan}, "beta=nan"),
        ({"ranks_per_node": 0}, "ranks_per_node=0"),
        ({"compute": "fast"}, "law 'fast' is unknown"),
        ({"fail": {2: 1}}, "rank 2 is not one of 0 to 1"),
        ({"fail": {0: 0}}, "write a call"),
        ({"fail": {0: -1.0}}, "write a call"),
        ({"fail": {0: math.inf}}, "write a call"),
    ],
)
def test_arguments_that_make_no_sense_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        simulate(lambda world: None, **{"size": 2, **arguments})


def test_a_law_that_turns_the_clock_back_is_named():
    class Backwards:
        def draw(self, rng, rank, step):
            return -1.0

    with pytest.raises(UsageError, match=r"drew -1\.0"):
        simulate(lambda world: world.computed(0.0), 1, compute=Backwards())
