"""The server strategy: owners, a warm start, versions of shards, nothing lost or counted twice, what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcasync.errors import UsageError
from hpcasync.sim import simulate
from hpcasync.world import World
from tests.training import Vectors, build, classifier, gradient, linear, train

LENGTH = 11


@pytest.mark.parametrize(
    ("owner", "make"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, 0.1)),
        ("nesterov", lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True)),
        ("adagrad", lambda p: torch.optim.Adagrad(p, 0.1)),
        ("adam", lambda p: torch.optim.Adam(p, 0.1)),
    ],
)
def test_owners_have_one_optimizer_for_the_gradients_of_all_ranks(owner, make):
    """Ranks with the gradients of a linear loss, in whatever order: one optimizer that sees them in that order."""
    order: list[tuple[int, int]] = []

    def main(world: World):
        strategy = build(f"server owner={owner}", world, model := Vectors((5, 3)), lr=0.1)
        for step in range(8):
            linear(model, world.rank, step).backward()
            world.computed(0.0)
            order.append((world.rank, step))
            strategy.step()
        world.barrier()
        return strategy.result()

    results = simulate(main, 3, compute="exponential")
    alone = torch.nn.Parameter(torch.zeros(15))
    optimizer = make([alone])
    for rank, step in order:
        alone.grad = gradient(rank, step, 15)
        optimizer.step()
    for result in results:
        assert torch.allclose(result, alone.detach(), atol=1e-5)


@pytest.mark.parametrize("policy", ["async", "ssp:1", "bsp", "quorum:3", "rennala:1"])
def test_a_warm_start_is_rank_0_alone(policy):
    def main(world: World):
        strategy = build(f"server warmup=5 policy={policy}", world, model := Vectors((2,)))
        starts = []
        for step in range(8):
            starts.append(world.now())
            linear(model, world.rank, step).backward()
            world.computed(0.0)
            strategy.step()
        strategy.drain()
        return starts[1], strategy.dropped

    results = simulate(main, 3)
    assert [start for start, _ in results] == pytest.approx([1.0, 5.0, 5.0])
    if not policy.startswith("rennala"):
        assert [dropped for _, dropped in results] == [0, 1, 1]


def test_an_alarm_when_shards_are_not_of_one_version():
    def main(world: World):
        strategy = build("server", world, model := classifier())
        train(strategy, model, None, 3)
        assert strategy.skew <= world.size
        world.barrier()
        if world.rank == 1:
            strategy._versions.mine.add_(10)  # as if 10 updates had been lost elsewhere
        world.barrier()
        train(strategy, model, None, 3)
        return strategy.skew

    with pytest.warns(RuntimeWarning, match="server: 10 updates have not arrived at every shard"):
        assert min(simulate(main, 3, compute="exponential")) >= 10


some_steps = st.lists(st.integers(0, 7), min_size=1, max_size=4)
some_network = st.sampled_from([(0.0, 0.0), (0.3, 0.0), (0.05, 0.01)])


@settings(max_examples=30)
@given(some_steps, st.sampled_from(["async", "ringmaster:2", "ssp:1", "inf"]), st.integers(1, 3), some_network)
def test_what_is_generated_is_applied_or_dropped(steps, policy, push, network):
    """With lr 1 and ones for gradients, what has been applied is what x has moved."""
    words = f"server policy={'ringmaster:inf' if policy == 'inf' else policy} push={push}"

    def main(world: World):
        strategy = build(words, world, model := Vectors((LENGTH,)))
        for _ in range(steps[world.rank]):
            model.p0.sum().backward()
            world.computed(0.0)
            strategy.step()
        strategy.drain()
        return strategy.result(), strategy.dropped

    alpha, beta = network
    results = simulate(main, len(steps), compute="exponential", alpha=alpha, beta=beta)
    applied = sum(steps) - sum(dropped for _, dropped in results)
    for result, _ in results:
        assert result.tolist() == pytest.approx([-applied] * LENGTH, abs=1e-4)


@settings(max_examples=30)
@given(some_steps, st.sampled_from(["rennala", "rennala:5", "backup", "quorum:2:0.3"]), some_network)
def test_what_is_collected_is_in_one_update_or_dropped(steps, policy, network):
    """The mean of ones is one: x has moved by the number of updates, and contributions are counted in the histogram."""

    def main(world: World):
        strategy = build(f"server policy={policy}", world, model := Vectors((LENGTH,)))
        for _ in range(steps[world.rank]):
            model.p0.sum().backward()
            world.computed(0.0)
            strategy.step()
        strategy.drain()
        used = strategy.staleness.count
        assert used + strategy.dropped == steps[world.rank]
        return float(strategy.result()[0]), used, strategy._board.version()

    alpha, beta = network
    results = simulate(main, len(steps), compute="exponential", alpha=alpha, beta=beta)
    for moved, _, updates in results:
        assert moved == pytest.approx(-updates)
        assert updates <= sum(used for _, used, _ in results)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("server push=0", "push=0: it is a period in steps, so 1 or more"),
        ("server pull=0", "pull=0: it is a period in steps, so 1 or more"),
        ("server warmup=-1", "warmup=-1: it counts steps, so 0 or more"),
        ("server owner=lion", "owner=lion: it is one of given, sgd, nesterov, adagrad, adam"),
        ("server policy=best", "policy=best: unknown; known: async, bsp, ssp:STEPS, "),
    ],
)
def test_values_out_of_range_are_refused(words, message):
    with pytest.raises(UsageError) as error:
        simulate(lambda world: build(words, world, Vectors((2,))), 2)
    assert str(error.value).startswith(message)
