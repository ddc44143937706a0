"""SimWorld: buffers in flight read NaN; a wait ends when what its condition reads has changed."""

from __future__ import annotations

import pytest
import torch

from hpcasync.sim import simulate
from hpcasync.world import WorldError

ALPHA, BETA = 0.25, 1 / 1024  # exact in binary


# In flight


def test_a_buffer_reads_nan_until_its_reduction_is_waited_for():
    def main(world):
        waited_for, tested = torch.ones(3), torch.ones(3)
        requests = world.iallreduce(waited_for), world.iallreduce(tested)
        assert waited_for.isnan().all() and tested.isnan().all()
        world.computed(0.0)
        world.computed(0.0)
        assert waited_for.isnan().all()  # arrived, and still not mine
        requests[0].wait()
        assert requests[1].test()
        assert waited_for.tolist() == tested.tolist() == [world.size] * 3
        requests[0].wait()  # again: nothing more to come
        assert waited_for.tolist() == [world.size] * 3

    simulate(main, 3)


def test_a_request_is_in_flight_for_its_time():
    def main(world):
        request = world.iallreduce(torch.ones(256))
        world.computed(0.0)
        early = request.test()
        world.computed(0.0)
        return early, request.test()

    assert simulate(main, 2, alpha=ALPHA, beta=BETA, compute="constant:1.2") == [(False, True)] * 2


def test_sources_and_targets_read_nan_until_the_flush():
    def main(world):
        window = world.window(4)
        window.local.fill_(world.rank + 1)
        world.barrier()
        peer = 1 - world.rank
        source, pulled, whole = torch.ones(4), torch.zeros(4), torch.arange(4)
        window.push(source, peer)
        window.push(source, peer)  # the World itself may read what is its own for now
        window.pull(pulled, peer)
        assert source.isnan().all() and pulled.isnan().all()
        world.computed(0.0)
        assert source.isnan().all() and pulled.isnan().all()
        window.flush()
        assert source.tolist() == [1.0] * 4
        assert pulled.unique().numel() == 1 and not pulled.isnan().any()
        world.barrier()
        assert window.local.tolist() == [world.rank + 3.0] * 4
        world.barrier()
        taken = torch.zeros(4)
        window.take(taken, peer)
        assert taken.isnan().all()
        window.flush()
        assert taken.tolist() == [peer + 3.0] * 4
        world.barrier()
        assert not window.local.any()
        whole_window = world.window(4, torch.int64)
        whole_window.push(whole, peer)
        assert whole.tolist() == [0, 1, 2, 3]  # integers have no NaN
        whole_window.flush()

    simulate(main, 2)
    simulate(main, 2, alpha=0.01, beta=1e-4)


def test_one_source_lent_through_two_windows_is_whole_only_after_both_flushes():
    def main(world):
        first, second = world.window(2), world.window(2)
        source = torch.ones(2)
        first.push(source, 0)
        second.push(source, 0)
        first.flush()
        assert source.isnan().all()
        second.flush()
        assert first.local.tolist() == second.local.tolist() == source.tolist() == [1.0, 1.0]

    simulate(main, 1)


# Waiting


def test_waiting_ends_when_the_push_arrives():
    def main(world):
        window = world.window(256)
        world.barrier()
        start = world.now()
        if world.rank == 0:
            world.computed(0.0)
            window.push(torch.ones(256), 1)
            window.flush()
        else:
            world.wait_until(lambda: bool(window.local[0] > 0))
        return world.now() - start

    assert simulate(main, 2, alpha=ALPHA, beta=BETA) == [2.25, 2.25]


def test_a_pull_inside_a_condition_costs_alpha_once():
    def main(world):
        window = world.window(1)
        world.barrier()
        start, clock = world.now(), torch.zeros(1)
        if world.rank == 0:
            for _ in range(5):
                world.computed(0.0)
                window.local.add_(1)
            return None

        def far_enough():
            window.pull(clock, 0)
            window.flush()
            return clock.item() >= 3

        waited = world.waited
        world.wait_until(far_enough)
        return world.now() - start, world.waited - waited, clock.item()

    assert simulate(main, 2, alpha=ALPHA, beta=BETA)[1] == (3.25, 3.25, 3.0)
    assert simulate(main, 2)[1] == (3.0, 3.0, 3.0)


def test_a_condition_is_looked_at_only_when_what_it_reads_changes():
    looks = []

    def main(world):
        window, other = world.window(1), world.window(1)
        world.barrier()
        if world.rank == 0:
            for step in range(100):
                world.computed(0.0)
                other.local.add_(1)
                other.push(torch.ones(1), 1)
                other.flush()
                if step % 50 == 49:
                    window.push(torch.ones(1), 1)
                    window.flush()
            return

        def twice():
            looks.append(window.local.item())
            return window.local.item() == 2

        world.wait_until(twice)

    simulate(main, 2)
    assert looks == [0.0, 1.0, 2.0]


def test_what_an_owner_writes_in_place_wakes_its_watchers():
    def main(world):
        window = world.window(1)
        mine, seen = window.local, torch.zeros(1)
        if world.rank == 0:
            for _ in range(3):
                world.computed(0.0)
                mine.numpy()[0] += 1  # no tensor operation
            mine.numpy()[0] += 1
            return world.now()  # the last write of a rank that returns

        def all_four():
            window.pull(seen, 0)
            return seen.item() == 4

        world.wait_until(all_four)
        return world.now()

    assert simulate(main, 3) == [3.0, 3.0, 3.0]


def test_an_owner_that_writes_and_then_watches_its_own_part_wakes_the_others():
    def main(world):
        window = world.window(1)
        if world.rank == 0:
            world.computed(0.0)
            window.local.fill_(1)
            world.wait_until(lambda: window.local[0] == 2)
        else:
            seen = torch.zeros(1)
            world.wait_until(lambda: window.pull(seen, 0) or seen[0] == 1)
            world.computed(0.0)
            window.push(torch.ones(1), 0)
            window.flush()
        return world.now()

    assert simulate(main, 2) == [2.0, 2.0]


def test_ranks_that_watch_each_other_come_to_rest():
    """Each condition reads its own part and the other's: looking must not count as a change."""

    def main(world):
        window = world.window(1)
        world.barrier()
        theirs = torch.zeros(1)

        def both_nan():
            window.pull(theirs, 1 - world.rank)
            return bool(window.local.isnan().all() and theirs.isnan().all())

        world.computed(0.0)
        window.local.fill_(torch.nan)
        world.wait_until(both_nan)
        return world.now()

    assert simulate(main, 2, compute="slow:1:4") == [4.0, 4.0]


def test_conditions_on_shared_memory_python_state_requests_and_the_clock():
    flag = []

    def main(world):
        board = world.shared(1)
        window = world.window(1)
        request = world.iallreduce(torch.ones(256))
        times = []
        if world.rank == 0:
            world.computed(0.0)
            board[0] = 1
            world.computed(0.0)
            flag.append(True)
            world.computed(0.0)
            world.computed(0.0)
            request.wait()
            window.local.fill_(1)
            board[0] = 2
            return None
        for condition in (
            lambda: board[0] == 1,
            lambda: bool(flag),
            request.test,
            lambda: window.local[0] == 1 or board[0] == 2,  # two sources, one of them cannot be traced
            lambda: world.now() >= 9,
        ):
            world.wait_until(condition)
            times.append(world.now())
        return times

    times = simulate(main, 2, beta=BETA)[1]
    assert times[:4] == [1.0, 2.0, 2.0, 4.0]
    assert times[4] == pytest.approx(9.0, abs=2e-3)


def test_a_lock_can_be_taken_inside_a_condition():
    inside = []

    def main(world):
        lock = world.window(1)
        if world.rank == 0:
            lock.local.fill_(1)
        world.barrier()
        token = torch.zeros(1)

        def acquired():
            lock.take(token, 0)
            lock.flush()
            return token.item() == 1

        for _ in range(5):
            world.wait_until(acquired)
            inside.append(("in", world.rank))
            world.computed(0.0)
            inside.append(("out", world.rank))
            lock.push(token, 0)
            lock.flush()

    simulate(main, 4, compute="exponential", alpha=0.01)
    assert len(inside) == 40
    for entry, leave in zip(inside[::2], inside[1::2], strict=True):
        assert entry == ("in", leave[1]) and leave[0] == "out"


def test_a_condition_may_not_wait():
    def main(world):
        world.wait_until(lambda: world.barrier() is None)

    with pytest.raises(WorldError, match="a condition of wait_until may look, but not wait or compute"):
        simulate(main, 2)


def test_polling_while_the_clock_stands_still_is_an_error(monkeypatch):
    monkeypatch.setattr("hpcasync.sim.events._CALLS_AT_ONE_TIME", 1000)

    def main(world):
        if world.rank == 1:
            request = world.iallreduce(torch.ones(1))
            while not request.test():
                pass
        else:
            world.computed(0.0)

    with pytest.raises(WorldError, match="rank 1 polls at 0 s: its clock stands still; use wait_until"):
        simulate(main, 2)
