"""Elastic averaging: what an exchange keeps, and where the paper says it is stable."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.sim import simulate
from hpcasync.strategies.easgd import Eamsgd, Easgd
from hpcasync.world import World
from tests.training import Vectors, build, gradient, linear, train


def parabola(model: nn.Module, rank: int, step: int) -> torch.Tensor:
    return sum((p.square().sum() / 2 for p in model.parameters()), torch.zeros(()))


def start_at_one(words: str, world: World, lr: float) -> tuple[Easgd, nn.Module]:
    model = Vectors((1,), dtypes=(torch.float64,))
    nn.init.ones_(model.p0)
    return build(words, world, model, lr=lr), model


def round_robin(world: World, eta: float, alpha: float, rounds: int) -> float:
    """|x| + |center| after the ranks have made their steps one after the other, from 1."""
    strategy, model = start_at_one(f"easgd period=1 beta={alpha * world.size}", world, eta)
    for step in range(rounds):
        for turn in range(world.size):
            if turn == world.rank:
                train(strategy, model, parabola, 1, first=step)
                strategy._settle()
            world.barrier()
    size = float(model.p0.detach().abs() + strategy.parameters()[0].abs())
    world.barrier()
    return size


@pytest.mark.parametrize("eta", [0.5, 1.0, 1.5])
@pytest.mark.parametrize(("size", "above"), [(1, 1.03), (2, 1.09), (3, 1.03)])  # 2 ranks bear up to 6 % more
def test_round_robin_is_stable_up_to_the_bound_of_the_paper(eta, size, above):
    bound = (4 - 2 * eta) / (4 - eta)
    assert max(simulate(lambda world: round_robin(world, eta, 0.97 * bound, rounds=200), size)) < 0.1
    assert max(simulate(lambda world: round_robin(world, eta, above * bound, rounds=200), size)) > 10


def test_the_first_steps_are_those_of_algorithm_1(ranks):
    def main(world: World):
        strategy, model = start_at_one("easgd period=1 beta=0.5", world, lr=0.1)
        alpha, x, center = 0.5 / world.size, torch.ones(world.size), torch.ones(())
        for step in range(4):
            for turn in range(world.size):
                force = alpha * (x[turn] - center)
                x[turn] += -0.1 * x[turn] - force
                center += force
                if turn == world.rank:
                    train(strategy, model, parabola, 1, first=step)
                    strategy._settle()
                world.barrier()
        assert float(model.p0.detach()) == pytest.approx(float(x[world.rank]), rel=1e-5)
        assert float(strategy.result()) == pytest.approx(float(center), rel=1e-5)
        world.barrier()

    ranks(main)


def test_without_momentum_eamsgd_is_easgd_and_with_it_nesterov(ranks):
    def main(world: World):
        plain, model = start_at_one("easgd period=2", world, lr=0.1)
        none, twin = start_at_one("eamsgd period=2 momentum=0", world, lr=0.1)
        train(plain, model, parabola, 5)
        world.barrier()
        train(none, twin, parabola, 5)
        assert world.size > 1 or torch.allclose(model.p0, twin.p0)
        world.barrier()

        strategy, model = start_at_one("eamsgd period=100 momentum=0.9", world, lr=0.1)
        x, v = 1.0, 0.0
        for step in range(20):
            train(strategy, model, parabola, 1, first=step)
            v = 0.9 * v - 0.1 * (x + 0.9 * v)
            x += v
        assert float(model.p0.detach()) == pytest.approx(x + 0.9 * v)
        world.barrier()

    ranks(main)


def test_an_exchange_keeps_the_sum_of_replicas_and_center():
    strategies = {}

    def main(world: World):
        model = Vectors((4, 2), (3,), dtypes=(torch.float64,))
        strategies[world.rank] = strategy = build("easgd period=2", world, model, lr=0.5)
        train(strategy, model, linear, 3 + 2 * world.rank)
        strategy._settle()
        world.barrier()

    simulate(main, 4, compute="exponential", alpha=0.3, beta=0.01)
    total = sum(strategy.replica.params.detach() for strategy in strategies.values())
    total += torch.cat([strategies[rank]._centers[0].shard for rank in range(4)])
    made = sum(gradient(rank, step, 11) for rank in range(4) for step in range(3 + 2 * rank))
    assert torch.allclose(total, -0.5 * made.double(), atol=1e-12, rtol=0)


def test_staleness_counts_the_exchanges_of_the_others(ranks):
    def main(world: World):
        strategy, model = start_at_one("easgd period=1", world, lr=0.1)
        for step in range(3):
            for turn in range(world.size):
                if turn == world.rank:
                    train(strategy, model, parabola, 1, first=step)
                    strategy._settle()
                world.barrier()
        others = world.size - 1
        assert strategy.staleness.histogram == Counter([world.rank, others, others])

    ranks(main)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("easgd period=0", "period=0: it counts steps, so 1 or more"),
        ("easgd beta=0", "beta=0: it is the pull on the center, so above 0"),
        ("easgd beta=nan", "beta=nan: it is the pull on the center, so above 0"),
        ("eamsgd momentum=1", "momentum=1: it is in [0, 1)"),
    ],
)
def test_values_out_of_range(words, message):
    with pytest.raises(UsageError) as error:
        simulate(lambda world: build(words, world, Vectors((2,))), 2)
    assert str(error.value) == message


def test_a_slow_rank_keeps_nobody_waiting():
    def main(world: World):
        replica = Replica(model := Vectors((2,)))
        strategy = Eamsgd(replica, world, torch.optim.SGD([replica.flat], lr=0.1), period=1, momentum=0.5)
        before = world.waited
        train(strategy, model, linear, 20)
        return world.waited - before

    assert simulate(main, 4, compute="slow:3:50") == [0.0] * 4
