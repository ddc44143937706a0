"""Gossip: mass is conserved whatever happens, averages are exact where they should be, and nobody waits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpcasync import topology
from hpcasync.errors import UsageError
from hpcasync.sim import simulate
from hpcasync.sim.window import SimWindow, _add
from hpcasync.strategies.push_sum import PushSum
from hpcasync.world import World
from tests.training import Vectors, build, gradient, linear, train

LENGTH = 7


class OnItsWay:
    """The mass that pushes have taken from their senders and not brought to their targets yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mass = torch.zeros(LENGTH + 1, dtype=torch.float64)
        start, land = SimWindow._start, SimWindow._land

        def started(window, act, buffer, value, span, rank):
            self._count(act, value, 1)
            return start(window, act, buffer, value, span, rank)

        def landed(window, operation):
            self._count(operation.act, operation.value, -1)
            land(window, operation)

        monkeypatch.setattr(SimWindow, "_start", started)
        monkeypatch.setattr(SimWindow, "_land", landed)

    def _count(self, act, value: Tensor, sign: int) -> None:
        if act is _add and value.numel() == self.mass.numel():
            self.mass += sign * value


def held(push_sum: PushSum) -> Tensor:
    return push_sum._memories[0] + push_sum._inboxes[0]._parts[push_sum._world.rank].memory


@pytest.mark.parametrize("words", ["sgp", "sgp peers=random bound=1", "overlap_sgp peers=ring", "overlap_sgp bound=9"])
def test_mass_is_conserved_at_every_moment_messages_in_flight_included(words, monkeypatch):
    on_its_way, strategies = OnItsWay(monkeypatch), {}
    made = torch.zeros(LENGTH, dtype=torch.float64)
    errors, in_flight = [], []

    def look(size: int) -> None:
        if len(strategies) == size:
            total = on_its_way.mass + sum(held(strategy._push_sum) for strategy in strategies.values())
            errors.append(float((total - torch.cat([-0.5 * made, torch.tensor([float(size)])])).abs().max()))
            in_flight.append(float(on_its_way.mass[-1]))

    def main(world: World):
        model = Vectors((LENGTH,), dtypes=(torch.float64,))
        strategies[world.rank] = strategy = build(words, world, model, lr=0.5)
        descend = strategy._descend

        def counted():
            descend()
            made.add_(gradient(world.rank, strategy._steps, LENGTH))
            look(world.size)

        strategy._descend = counted
        for step in range(60):
            train(strategy, model, linear, 1, first=step)
            look(world.size)
        strategy.drain()

    simulate(main, 5, compute="pareto:1.5", alpha=0.4, beta=0.002)
    assert len(errors) > 500
    assert max(in_flight) > 0.3
    assert max(errors) < 1e-12


@pytest.mark.parametrize("peers", ["one_peer", "exponential"])
def test_push_sum_averages_in_log2_n_rounds_when_all_are_in_step(ranks, peers):
    def main(world: World):
        mine = torch.full((3,), float(world.rank), dtype=torch.float64)
        push_sum, estimate = PushSum(world, [mine]), torch.empty_like(mine)
        for step in range(topology.hops(world.size) if peers == "one_peer" else 60):
            push_sum.send(0, topology.named(peers)(world.rank, world.size, step))
            push_sum.flush()
            world.barrier()
            push_sum.receive(0)
            world.barrier()
        push_sum.estimate(0, estimate)
        if peers == "one_peer" and world.size not in (1, 2, 4, 8):
            return
        assert estimate.tolist() == pytest.approx([(world.size - 1) / 2] * 3, rel=1e-15)
        assert float(push_sum.w(0)) == pytest.approx(1.0, rel=1e-15)

    ranks(main)


def test_a_share_that_is_just_landing_stays_in_the_inbox():
    def main(world: World):
        push_sum = PushSum(world, [torch.ones(4, dtype=torch.float64)])
        if world.rank == 0:
            push_sum.send(0, [1])
            push_sum._counts.push(push_sum._one, 1, 0)  # announced, and nothing of it there yet
            push_sum.flush()
        world.barrier()
        merged = []
        if world.rank == 1:
            merged.append(push_sum.receive(0))
            push_sum._inboxes[0].local.add_(0.25)
            push_sum._counts.local[1] += 1
            merged.append(push_sum.receive(0))
            merged.append(push_sum.receive(0))
        world.barrier()
        return merged, push_sum._memories[0].tolist()

    assert simulate(main, 2) == [([], [0.5] * 5), ([0, 2, 0], [1.75] * 5)]


def test_full_inboxes_are_passed_over_and_who_has_little_keeps_it():
    def main(world: World):
        push_sum = PushSum(world, [torch.ones(1, dtype=torch.float64)])
        if world.rank in (1, 2):
            push_sum.send(0, [0])
            push_sum.flush()
        world.barrier()
        push_sum.look([0, 1])
        push_sum.flush()
        rich = [push_sum.open_peers(bound) for bound in (2, 3)]
        push_sum.send(0, [])
        push_sum._memories[0].mul_(0.49)
        world.barrier()
        return rich, push_sum.open_peers(9)

    assert simulate(main, 4)[3] == ([[1], [0, 1]], [])


@pytest.mark.parametrize("words", ["sgp", "overlap_sgp peers=random"])
def test_a_slow_rank_keeps_nobody_waiting_and_the_weights_stay_near_1(words):
    def main(world: World):
        strategy = build(words, world, model := Vectors((3,)))
        before, weights = world.waited, []
        for step in range(10 if world.rank == 3 else 500):
            train(strategy, model, linear, 1, first=step)
            weights.append(float(strategy._push_sum.w(0)))
        return world.waited - before, min(weights), max(weights)

    for waited, least, most in simulate(main, 4, compute="slow:3:50"):
        assert waited == 0.0
        assert 0.25 <= least <= most < 3


def in_step(words: str, world: World, steps: int, length: int = LENGTH):
    """A strategy in float64 whose gradients are zero and whose replicas differ: rank r's are all r."""
    strategy = build(words, world, model := Vectors((length,), dtypes=(torch.float64,)))
    model.p0.data.fill_(world.rank)
    if hasattr(strategy, "_push_sum"):
        for part in range(len(strategy._estimates)):
            strategy._push_sum.x(part).fill_(world.rank)
    world.barrier()
    for step in range(steps):
        train(strategy, model, None, 1, first=step)
        world.barrier()
    return strategy, model.p0.detach().clone()


def test_dpsgd_mixes_by_its_matrix(ranks):
    for peers in ("ring", "exponential", "one_peer"):

        def main(world: World, peers=peers):
            strategy, mine = in_step(f"dpsgd peers={peers}", world, steps=5)
            expected = torch.arange(world.size, dtype=torch.float64)
            for step in range(5):
                expected = topology.mixing_matrix(topology.named(peers), world.size, step) @ expected
            assert mine.tolist() == pytest.approx([float(expected[world.rank])] * LENGTH, abs=1e-12)
            strategy.drain()
            assert strategy.result().tolist() == pytest.approx([(world.size - 1) / 2] * LENGTH, abs=1e-12)

        ranks(main, compute="exponential")


def test_dpsgd_waits_for_its_neighbours_and_so_for_everyone_in_the_end():
    def main(world: World):
        strategy = build("dpsgd", world, model := Vectors((2,)))
        reached = []
        for step in range(12):
            train(strategy, model, linear, 1, first=step)
            reached.append(world.now())
        strategy.drain()
        return reached

    reached = simulate(main, 8, compute="slow:0:10")
    assert [reached[4][step] for step in range(4)] == [1.0, 2.0, 3.0, 13.0]  # 4 places from the slow one
    assert reached[4][11] == 93.0


def test_pairs_take_on_their_mean_and_who_is_asked_need_not_answer():
    def main(world: World):
        strategy, mine = in_step("adpsgd", world, steps=0)
        if world.rank == 1:
            train(strategy, strategy.replica.model, None, 1)
            mine = strategy.replica.params.detach().clone()
        world.barrier()
        if world.rank == 0:
            before = strategy.replica.params.detach().clone()
            train(strategy, strategy.replica.model, None, 1)
            mine = torch.cat([before, strategy.replica.params.detach()])
        world.barrier()
        return mine.unique().tolist()

    assert simulate(main, 2) == [[0.0, 0.5], [0.5]]


def test_pairs_keep_the_sum_at_every_moment(monkeypatch):
    on_its_way, strategies = OnItsWay(monkeypatch), {}
    on_its_way.mass = torch.zeros(LENGTH, dtype=torch.float64)
    made, errors = torch.zeros(LENGTH, dtype=torch.float64), []

    def main(world: World):
        model = Vectors((LENGTH,), dtypes=(torch.float64,))
        strategies[world.rank] = strategy = build("adpsgd", world, model, lr=0.5)
        world.barrier()
        for step in range(60):
            linear(model, world.rank, step).backward()
            world.computed(0.0)
            strategy.step()
            made.add_(gradient(world.rank, step, LENGTH))
            held = sum(
                s.replica.params.detach() + s._inboxes[0]._parts[s.world.rank].memory for s in strategies.values()
            )
            errors.append(float((on_its_way.mass + held + 0.5 * made).abs().max()))
        strategy.drain()

    simulate(main, 5, compute="pareto:1.5", alpha=0.4, beta=0.002)
    assert len(errors) == 300
    assert max(errors) < 1e-12


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_wagma_reaches_everyone_in_log_rounds(size):
    def main(world: World):
        strategy, _ = in_step("wagma members=2", world, steps=0)
        push_sum = strategy._push_sum
        for step in range(topology.digits(size, 2)):
            push_sum.send(0, topology.group(world.rank, size, step, 2))
            push_sum.flush()
            world.barrier()
            push_sum.receive(0)
            world.barrier()
        return float(push_sum.x(0)[0]), float(push_sum.w(0))

    assert simulate(main, size) == [((size - 1) / 2, 1.0)] * size


def test_wagma_chooses_groups_of_the_root_of_n():
    sizes = {n: simulate(lambda world: build("wagma", world, Vectors((2,))).members, n)[0] for n in (1, 2, 4, 8, 16)}
    assert sizes == {1: 2, 2: 2, 4: 2, 8: 4, 16: 4}


def test_wagma_waits_only_for_who_is_more_than_bound_steps_behind():
    def main(world: World):
        strategy = build("wagma bound=5", world, model := Vectors((3,)))
        before, waited = world.waited, []
        for step in range(7 if world.rank < 3 else 2):
            train(strategy, model, linear, 1, first=step)
            waited.append(world.waited - before)
        return waited

    waited = simulate(main, 4, compute="slow:3:10")[0]
    assert waited[:5] == [0.0] * 5  # the slow rank makes its first step at 10 s
    assert waited[5] == 4.0
    assert waited[6] == pytest.approx(13.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sgp peers=star", "topology=star: it is one of ring, exponential, one_peer, random"),
        ("sgp bound=0", "bound=0: it counts shares that may wait at a peer, so 1 or more"),
        ("wagma members=1", "members=1: it is the size of a group, so 2 or more, or 0 for sqrt(n)"),
        ("wagma bound=-1", "bound=-1: it counts steps, so 0 or more (inf never waits)"),
        ("dpsgd peers=random", "strategy dpsgd: peers=random is not one of ring, exponential, one_peer"),
    ],
)
def test_values_out_of_range(words, message):
    with pytest.raises(UsageError) as error:
        simulate(lambda world: build(words, world, Vectors((2,))), 2)
    assert str(error.value) == message
