"""SimWorld: ranks die when they are told to; the survivors hear of it, shrink, and go on."""

from __future__ import annotations

import pytest
import torch

from hpcasync.sim import DETECTION_SECONDS, simulate
from hpcasync.world import RankFailed

ALPHA, BETA = 0.25, 1 / 1024  # exact in binary


# Death


def a_little_of_everything(world):
    window = world.window(4)
    peer = (world.rank + 1) % world.size
    board, seen = world.shared(1), torch.zeros(4)
    request = world.iallreduce(torch.ones(8))
    world.computed(0.0)
    request.wait()
    for _ in range(2):
        window.push(torch.ones(4), peer)
        window.pull(seen, peer)
        window.flush()
        world.allreduce(torch.ones(8))
        world.computed(0.0)
    world.wait_until(lambda: window.local[0] == 2)
    board += 1
    world.barrier()
    window.take(seen, peer)
    window.flush()
    world.broadcast(seen, 1)
    world.barrier()
    window.free()


CALLS = 22  # of the ones above


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("cost", [0.0, 0.001])
@pytest.mark.parametrize("call", range(1, CALLS + 1))
def test_survivors_of_a_death_at_any_call_shrink_and_go_on(n, cost, call):
    def main(world):
        try:
            a_little_of_everything(world)
            world.barrier()
            return "untouched"
        except RankFailed as failure:
            noticed = world.now()
            assert set(failure.ranks) <= {1}
            survivors = world.shrink()
        mine = torch.tensor([float(world.rank)])
        survivors.allreduce(mine)
        a_little_of_everything(survivors) if survivors.size > 1 else None
        return noticed, survivors.rank, survivors.size, mine.item()

    results = simulate(main, n, fail={1: call}, alpha=cost, beta=cost, seed=call)
    assert results[1] is None
    alive = [rank for rank in range(n) if rank != 1]
    for rank in alive:
        noticed, *rest = results[rank]
        assert rest == [alive.index(rank), n - 1, sum(alive)]
        assert noticed < 4 + DETECTION_SECONDS


def test_the_deaths_above_are_at_every_call_there_is():
    def main(world):
        try:
            a_little_of_everything(world)
        except RankFailed:
            return "bereft"
        return "lived"

    assert simulate(main, 3, fail={1: CALLS}) == ["bereft", None, "bereft"]
    assert simulate(main, 3, fail={1: CALLS + 1}) == ["lived"] * 3


def test_death_at_a_time():
    unwound = []

    def main(world):
        try:
            while True:
                world.computed(0.0)
                if world.rank == 0:
                    world.allreduce(torch.ones(1))
                elif world.rank == 2:
                    world.wait_until(lambda: False)
        except RankFailed as failure:
            return failure.ranks, world.now()
        finally:
            unwound.append(world.rank)
            if world.rank == 1:
                world.barrier()

    results = simulate(main, 3, fail={1: 3.5})
    assert results == [((1,), 3.5 + DETECTION_SECONDS), None, ((1,), 3.5 + DETECTION_SECONDS)]
    assert sorted(unwound) == [0, 1, 2]


def test_a_rank_may_die_before_it_starts_and_all_may_die():
    assert simulate(lambda world: world.computed(0.0), 3, fail={0: 0.0, 1: 1, 2: 0.5}) == [None] * 3


def test_a_rank_that_has_returned_does_not_die():
    assert simulate(lambda world: world.computed(0.0) or world.rank, 2, compute="slow:1:4", fail={0: 2.0}) == [0, 1]


def test_a_collective_that_all_had_come_to_completes():
    def main(world):
        buffer = torch.ones(256)
        request = world.iallreduce(buffer)  # arrives at 1.25
        late = world.iallreduce(torch.ones(256)) if world.rank == 0 else None
        if world.rank == 1:
            world.wait_until(lambda: False)
        world.computed(0.0)
        request.wait()
        with pytest.raises(RankFailed):
            late.test()
        with pytest.raises(RankFailed):
            late.wait()
        with pytest.raises(RankFailed):
            world.iallreduce(torch.ones(1))
        return buffer.tolist() == [2.0] * 256, world.now()

    assert simulate(main, 2, alpha=ALPHA, beta=BETA, fail={1: 0.5}) == [(True, 1.25), None]


def test_a_collective_that_the_dead_had_come_to_but_not_all_the_living_fails():
    def main(world):
        world.iallreduce(torch.ones(1)) if world.rank == 1 else world.computed(0.0)
        if world.rank == 1:
            world.wait_until(lambda: False)
        request = world.iallreduce(torch.ones(1))  # the last to come, before anybody has heard of the death
        with pytest.raises(RankFailed):
            request.wait()
        return world.now()

    assert simulate(main, 2, fail={1: 0.95}) == [0.95 + DETECTION_SECONDS, None]


@pytest.mark.parametrize("verb", ["push", "pull", "take"])
def test_window_operations_to_the_dead_fail_and_to_the_living_work(verb):
    def main(world):
        window = world.window(2)
        world.barrier()
        if world.rank == 1:
            world.wait_until(lambda: False)
        if world.rank == 2:
            return None
        world.computed(0.0)
        buffer, living = torch.ones(2), torch.ones(2)
        getattr(window, verb)(buffer, 1)  # dead since 0.99, and nobody knows
        with pytest.raises(RankFailed) as caught:
            window.flush()
        assert caught.value.ranks == (1,)
        assert world.now() == pytest.approx(0.99 + DETECTION_SECONDS)
        assert (buffer == 1).all() if verb == "push" else buffer.isnan().all()
        with pytest.raises(RankFailed):
            getattr(window, verb)(buffer, 1)
        getattr(window, verb)(living, 2)
        window.flush()
        return living.tolist()

    assert simulate(main, 3, fail={1: 0.99})[0] == ([1.0, 1.0] if verb == "push" else [0.0, 0.0])


def test_what_a_rank_sent_before_its_death_arrives():
    def main(world):
        window = world.window(256)
        if world.rank == 1:
            window.push(torch.ones(256), 0)
            window.flush()
        world.computed(0.0)
        world.computed(0.0)
        return float(window.local[0])

    assert simulate(main, 2, alpha=ALPHA, beta=BETA, fail={1: 0.5}) == [1.0, None]


def test_a_condition_that_holds_without_the_dead_is_true():
    def main(world):
        window = world.window(1)
        world.computed(0.0)
        if world.rank == 0:
            world.computed(0.0)
            window.local.fill_(1)
            world.wait_until(lambda: window.local[0] == 1)
            with pytest.raises(RankFailed):
                world.wait_until(lambda: window.local[0] == 2)
        return world.now()

    assert simulate(main, 2, fail={1: 0.5}) == [2.0, None]


def test_a_shrunk_world_is_gone_but_its_memory_stays():
    def main(world):
        window = world.window(1)
        window.local.fill_(world.rank)
        request = world.iallreduce(torch.ones(1)) if world.rank == 0 else None
        if world.rank == 1:
            world.computed(0.0)
        if world.rank == 2:  # has heard of nothing, and is computing
            for _ in range(5):
                world.computed(0.0)
            raise AssertionError("must be told")
        with pytest.raises(RankFailed):
            world.wait_until(lambda: False)
        survivors = world.shrink()
        for call in (
            world.barrier,
            lambda: world.computed(0.0),
            lambda: world.wait_until(lambda: True),
            lambda: window.push(torch.ones(1), 0),
            window.flush,
            request.test,
            world.close,
        ):
            with pytest.raises(RankFailed):
                call()
        assert survivors.now() == world.now()
        return survivors.size, window.local.item(), survivors.waited

    def outer(world):
        try:
            return main(world)
        except RankFailed:
            return world.shrink().size

    (size, local, waited), dead, other = simulate(outer, 3, fail={1: 0.5})
    assert (size, local, dead, other) == (2, 0.0, None, 2)
    assert waited == pytest.approx(1.0)  # until rank 2's step was over


def test_deaths_during_recovery_are_recovered_from():
    def main(world):
        while world.size > 1:
            try:
                while True:
                    world.computed(0.0)
                    world.allreduce(torch.ones(1))
            except RankFailed:
                world = world.shrink()
        return world.size, world.now()

    # 2 dies while shrinking, 3 between its shrink and the detection of 2's death, 4 later
    results = simulate(main, 5, alpha=0.01, fail={1: 1.5, 2: 2.1, 3: 2.19, 4: 7.5})
    assert results[0][0] == 1
    assert results[1:] == [None] * 4


def test_shrink_without_a_death_is_a_new_world_of_the_same_ranks():
    def main(world):
        world = world.shrink()
        buffer = torch.ones(1)
        world.allreduce(buffer)
        return world.rank, buffer.item()

    assert simulate(main, 3) == [(0, 3.0), (1, 3.0), (2, 3.0)]


# Nodes


def test_nodes_share_memory_and_survive_renumbering():
    def main(world):
        memory = world.shared(1, torch.int64)
        memory += 1
        world.barrier()
        before = (world.node.rank, world.node.size, world.node.leader, int(memory))
        if world.rank == 1:
            world.computed(0.0)
        with pytest.raises(RankFailed):
            world.barrier()
        world = world.shrink()
        return before, (world.rank, world.node.rank, world.node.size, world.node.leader)

    assert simulate(main, 5, ranks_per_node=2, fail={1: 0.5}) == [
        ((0, 2, 0, 2), (0, 0, 1, 0)),
        None,
        ((0, 2, 2, 2), (1, 0, 2, 1)),
        ((1, 2, 2, 2), (2, 1, 2, 1)),
        ((0, 1, 4, 1), (3, 0, 1, 3)),
    ]
