"""One neuron at a time on several ranks: leases, staleness, nobody waits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hpcasync.replica import Replica
from hpcasync.sim import simulate
from hpcasync.strategies import parse_strategy
from hpcasync.world import RankFailed, World
from tests.neurons import SELECTS, every_select, neuron
from tests.training import Vectors, classifier, digits_loss, full_loss, gradient, linear, train


@settings(max_examples=25)
@given(
    select=st.sampled_from(SELECTS),
    steps=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    block=st.integers(1, 3),
    network=st.sampled_from([(0.0, 0.0), (0.3, 0.0), (0.05, 0.01)]),
    seed=st.integers(0, 9),
)
def test_with_leases_nobody_updates_what_another_has_updated_since_it_was_read(select, steps, block, network, seed):
    """Every update is counted and arrives once, and with a lease its staleness is 0."""

    def main(world: World):
        strategy = neuron(f"select={select} block={block}", world, model := Vectors((5, 3), (4, 1)))
        gradients = torch.zeros(19)
        for step in range(steps[world.rank]):
            before = strategy.replica.params.clone()
            train(strategy, model, linear, 1, first=step)
            if select == "ready":
                gradients += gradient(world.rank, step, 19)
            elif world.size == 1:
                gradients += before - strategy.replica.params
        strategy.drain()
        return strategy.result(), gradients, strategy.staleness, strategy.versions().sum(), strategy.dropped

    alpha, beta = network
    ended = simulate(main, len(steps), compute="exponential", seed=seed, alpha=alpha, beta=beta)
    results, gradients, staleness, versions, dropped = zip(*ended, strict=True)
    assert all(torch.equal(result, results[0]) for result in results)
    assert sum(each.count for each in staleness) == versions[0]
    if select == "ready" or len(steps) == 1:
        assert torch.allclose(results[0], -sum(gradients) if select == "ready" else -gradients[0], atol=1e-4)
    if select != "ready":
        assert all(each.max == 0 for each in staleness)
        assert versions[0] + sum(dropped) <= sum(steps)
    if select == "greedy":
        assert versions[0] + sum(dropped) == sum(steps)


def quadratic(n: int, words: str) -> float:
    """|x| after 40 steps, from |x| = 2, of n equally fast ranks on f = |x|^2 / 2, with the exact step 1 / L."""

    def main(world: World) -> Tensor:
        model = Vectors((4, 1))
        nn.init.ones_(model.p0)
        strategy = neuron(words, world, model)
        train(strategy, model, lambda m, rank, step: m.p0.square().sum() / 2, 40)
        strategy.drain()
        return strategy.result()

    return float(simulate(main, n, alpha=0.01)[0].norm())


def test_greedy_needs_its_lease():
    """n equally fast ranks see the same largest gradient. Without leases they step on it n times: x_b -> (1 - n) x_b.

    So it is stable up to staleness 1, and diverges from staleness 2 on.
    """
    assert [quadratic(n, "select=greedy lease=on") for n in (1, 2, 3, 4)] == [0.0] * 4
    assert quadratic(2, "select=greedy lease=off") <= 2
    assert quadratic(3, "select=greedy lease=off") > 1e6
    assert quadratic(4, "select=greedy lease=off") > 1e10


@every_select
def test_nobody_waits(select):
    """Though there are more ranks than neurons, and one of them is slow."""

    def main(world: World) -> float:
        strategy = neuron(f"select={select}", world, model := Vectors((3, 2)))
        before = world.waited
        train(strategy, model, linear, 10)
        waited = world.waited - before
        strategy.drain()
        return waited

    assert simulate(main, 5, compute="slow:2:8") == [0.0] * 5


def test_a_slow_rank_is_dropped_only_when_all_it_kept_has_changed():
    def main(world: World) -> int:
        strategy = neuron("select=greedy", world, model := Vectors((3, 2)))
        train(strategy, model, linear, 24 if world.rank else 3)
        strategy.drain()
        return strategy.dropped

    slow, fast = simulate(main, 2, compute="slow:0:8")
    assert slow > 0
    assert fast <= 3


def test_staleness_layer_by_layer(ranks):
    def main(world: World) -> None:
        strategy = neuron("", world, model := classifier(), lr=0.05)
        train(strategy, model, digits_loss, 5)
        strategy.drain()
        assert strategy.layer_staleness.keys() == {"0.weight", "2.weight"}
        assert strategy.layer_staleness["0.weight"].count == 5 * 32
        assert strategy.layer_staleness["2.weight"].count == 5 * 10
        assert strategy.staleness.count == 5 * 42
        world.barrier()
        assert strategy.versions().tolist() == [5 * world.size] * 42

    ranks(main, compute="exponential")


@pytest.mark.sizes(3)  # real ranks: 1, 2 and 4
@pytest.mark.parametrize("words", ["select=cyclic", "select=random", "select=greedy", "select=random lease=off"])
def test_real_ranks_learn_too(ranks, words):
    def main(world: World) -> None:
        strategy = neuron(f"block=8 {words}", world, model := classifier(), lr=0.5)
        before = full_loss(strategy, model)
        train(strategy, model, digits_loss, 60)
        strategy.drain()
        assert full_loss(strategy, model) < before - 0.15
        world.barrier()
        versions = strategy.versions().sum()
        counts = torch.tensor([float(strategy.staleness.count)])
        world.allreduce(counts)
        assert counts == versions
        if "lease=off" not in words:
            assert strategy.staleness.max == 0

    ranks(main, compute="exponential")


@pytest.mark.parametrize("select", ["cyclic", "random"])
def test_the_lease_of_a_dead_rank_blocks_nothing(select):
    def main(world: World):
        replica = Replica(model := Vectors((3, 16)))
        optimizer = torch.optim.SGD(replica.parameters(), lr=1.0)
        strategy = parse_strategy(["neuron", f"select={select}"]).build(replica, world, optimizer)
        try:
            train(strategy, model, linear, 100)
        except RankFailed:
            world = world.shrink()
            replica.reset_grads()
            strategy = parse_strategy(["neuron", f"select={select}"]).build(replica, world, optimizer)
            train(strategy, model, linear, 50)
            strategy.drain()
            return strategy.versions().tolist(), strategy.dropped

    first, dead, second = simulate(main, 3, compute="exponential", fail={1: 4.5})
    assert dead is None
    assert min(first[0]) > 10
    assert sum(first[0]) + first[1] + second[1] == 100
