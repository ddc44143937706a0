"""SimWorld: time in closed form, order, NaN in flight, waiting, deadlock and death."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from hpcasync.errors import UsageError
from hpcasync.laws import Constant
from hpcasync.sim import DETECTION_SECONDS, simulate
from hpcasync.world import Deadlock, RankFailed, WorldError

ALPHA, BETA = 0.25, 1 / 1024  # exact in binary


# Time


def test_a_synchronous_step_takes_the_slowest_of_n():
    steps, n = 4000, 4

    def main(world):
        for _ in range(steps):
            world.computed(0.0)
            world.barrier()
        return world.now(), world.waited

    results = simulate(main, n, compute="exponential")
    harmonic = sum(1 / i for i in range(1, n + 1))
    assert results[0][0] / steps == pytest.approx(harmonic, rel=0.05)
    for _, waited in results:  # each computes 1 of H_n on average
        assert waited / steps == pytest.approx(harmonic - 1, rel=0.1)


def test_asynchronous_ranks_make_n_pushes_per_mean_step():
    horizon, n = 2000.0, 4

    def main(world):
        window = world.window(1)
        one = torch.ones(1)
        while world.now() < horizon:
            world.computed(0.0)
            window.push(one, 0)
            window.flush()
        world.barrier()
        return int(window.local)

    pushes = simulate(main, n, compute="exponential")[0]
    assert pushes / horizon == pytest.approx(n, rel=0.05)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9])
def test_collectives_take_their_lower_bounds_from_when_the_last_has_come(n):
    def main(world):
        times = []
        for begin in (
            lambda: world.allreduce(torch.ones(256)),
            lambda: world.broadcast(torch.ones(256)),
            world.barrier,
            lambda: world.window(5),
            lambda: world.shared(5),
        ):
            world.computed(0.0)
            before = world.now() + (n - 1 - world.rank)  # when the slowest comes
            begin()
            times.append(world.now() - before)
            world.computed(0.0)  # undo the difference, so that all start the next together
            world.barrier()
        return times

    latency = ALPHA * math.ceil(math.log2(n))
    expected = [latency + 2 * (n - 1) / n, latency + (n > 1), latency, latency, latency]

    class Staggered:
        def draw(self, rng, rank, step):
            return 1.0 + rank

    for times in simulate(main, n, compute=Staggered(), alpha=ALPHA, beta=BETA):
        assert times == pytest.approx(expected)


def test_messages_leave_one_after_another_and_travel_side_by_side():
    def main(world):
        window = world.window(256)
        world.barrier()
        start, source = world.now(), torch.ones(256)
        if world.rank > 0:
            return None
        window.push(source, 1)
        window.flush()
        one_push = world.now() - start
        for rank in (1, 2, 1):
            window.push(source, rank)
        window.flush()
        three_pushes = world.now() - start - one_push
        start = world.now()
        window.pull(source, 2)
        window.flush()
        pull = world.now() - start
        start = world.now()
        window.push(torch.ones(256), 0)
        window.flush()
        return one_push, three_pushes, pull, world.now() - start

    assert simulate(main, 3, alpha=ALPHA, beta=BETA)[0] == (ALPHA + 1, ALPHA + 3, 2 * ALPHA + 1, 0.0)


def test_a_push_arrives_at_its_time_in_one_piece():
    def main(world):
        window = world.window(256)
        world.barrier()
        start, seen = world.now(), []
        if world.rank == 0:
            window.push(torch.ones(256), 1)
        while world.now() < start + 3:
            world.computed(0.0)
            seen.append((world.now() - start, set(window.local.tolist())))
        return seen

    seen = simulate(main, 2, compute="constant:0.5", alpha=ALPHA, beta=BETA)[1]  # on its way for 1.25
    assert seen == [(0.5, {0.0}), (1.0, {0.0}), (1.5, {1.0}), (2.0, {1.0}), (2.5, {1.0}), (3.0, {1.0})]


def test_a_push_that_costs_nothing_lands_at_once():
    def main(world):
        window = world.window(1)
        if world.rank == 0:
            window.push(torch.ones(1), 1)
            peek = torch.zeros(1)
            window.pull(peek, 1)
            window.flush()
            return float(peek)
        return None

    assert simulate(main, 2)[0] == 1.0


def test_sent_bytes_are_counted():
    def main(world):
        window = world.window(256)
        world.allreduce(torch.ones(300))
        world.broadcast(torch.ones(300))
        collectives = world.sent_bytes
        if world.rank == 0:
            window.push(torch.ones(256), 1)
            window.push(torch.ones(256), 0)  # stays at home
            window.pull(torch.ones(100), 1)
            window.flush()
        world.barrier()
        return collectives, world.sent_bytes - collectives

    assert simulate(main, 3) == [(2400, 1024), (2400, 400), (2400, 0)]


def test_the_compute_law_may_be_an_object_and_keeps_to_the_rank():
    def main(world):
        for _ in range(3):
            world.computed(123.0)
        return world.now(), world.waited

    assert simulate(main, 3, compute="slow:1:4") == [(3.0, 0.0), (12.0, 0.0), (3.0, 0.0)]
    assert simulate(main, 1, compute=Constant(0.5)) == [(1.5, 0.0)]


# Order and determinism


def trace(seed, compute="exponential"):
    events = []

    def main(world):
        window = world.window(1)
        for _ in range(20):
            world.computed(0.0)
            events.append((world.rank, world.now()))
            window.push(torch.ones(1), (world.rank + 1) % world.size)
            window.flush()
            events.append((world.rank, world.now(), float(window.local)))
        world.barrier()

    simulate(main, 4, compute=compute, alpha=0.01, seed=seed)
    return events


@pytest.mark.parametrize("compute", ["exponential", "constant"])
def test_a_seed_gives_one_order(compute):
    assert trace(7, compute) == trace(7, compute)
    assert trace(7, compute) != trace(8, compute)  # under "constant" all that differs is the order of ties


def test_the_default_generators_are_left_alone():
    def main(world):
        world.computed(0.0)
        world.allreduce(torch.ones(3))

    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    simulate(main, 3, compute="exponential")
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_sums_are_in_rank_order_and_the_same_bits_everywhere(dtype):
    n, length = 5, 1000
    parts = torch.randn(n, length, generator=torch.Generator().manual_seed(0)).to(dtype)

    def main(world):
        world.computed(0.0)
        blocking, nonblocking = parts[world.rank].clone(), parts[world.rank].clone()
        world.allreduce(blocking)
        request = world.iallreduce(nonblocking)
        world.computed(0.0)
        request.wait()
        assert torch.equal(blocking, nonblocking)
        return blocking

    total = parts[0].to(torch.promote_types(dtype, torch.float32))
    for rank in range(1, n):
        total = total + parts[rank]
    for summed in simulate(main, n, compute="exponential"):
        assert torch.equal(summed, total.to(dtype))


def test_grad_and_inference_mode_are_each_ranks_own():
    def main(world):
        window = world.window(1)
        mode = (torch.no_grad, torch.enable_grad, torch.inference_mode)[world.rank]
        for _ in range(5):
            with mode():
                world.computed(0.0)
                world.allreduce(torch.ones(1))
                world.wait_until(lambda: torch.is_grad_enabled() == (world.rank == 1))
                window.push(torch.ones(1), 0)
                window.flush()
                assert torch.is_grad_enabled() == (world.rank == 1)
                assert torch.is_inference_mode_enabled() == (world.rank == 2)
            assert torch.is_grad_enabled()
            world.computed(0.0)
        torch.set_grad_enabled(False)  # and leave it so

    with torch.no_grad():
        simulate(main, 3, compute="exponential")
        assert not torch.is_grad_enabled()
    simulate(main, 3, compute="exponential")
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_messages_are_not_modifications_to_autograd():
    def main(world):
        weight = torch.ones(3, requires_grad=True)
        loss = (weight * weight).sum()
        request = world.iallreduce(weight)
        request.wait()
        loss.backward()

    simulate(main, 2)


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


# Errors


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
    assert "rank 2 waits in wait_until(" in message and "test_sim.py" in message
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


# Size


@pytest.mark.timeout(300)
def test_ten_thousand_ranks():
    n = 10_000

    def main(world):
        window = world.window(8)
        buffer, one = torch.ones(8), torch.ones(8)
        for distance in (1, 100):
            world.computed(0.0)
            world.allreduce(buffer)
            buffer /= world.size
            window.push(one, (world.rank + distance) % world.size)
            window.flush()
        world.allreduce(buffer)
        return buffer[0].item(), window.local[0].item()

    assert set(simulate(main, n, compute="exponential", alpha=1e-6, beta=1e-9)) == {(float(n), 2.0)}
