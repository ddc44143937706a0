"""Local SGD and what has been made of it: rounds whose means are known, equalities, periods, nothing lost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.sim import simulate
from hpcasync.world import World
from tests.training import Vectors, build, classifier, digits_loss, gradient, linear, train

LENGTH = 11


def trained(words: str, world: World, steps: int = 24, lr: float = 0.1, momentum: float = 0.0) -> Tensor:
    """The classifier's parameters after ``steps`` steps of every rank on digits, in float64."""
    model = classifier().double()

    def loss(model, rank, step):
        return digits_loss(lambda x: model(x.double()), rank, step)

    strategy = build(words, world, model, lr=lr, momentum=momentum)
    train(strategy, model, loss, steps)
    strategy.drain()
    return strategy.result()


def test_a_round_is_the_mean_of_the_replicas(ranks):
    def main(world: World):
        strategy = build("local_sgd period=3", world, model := Vectors((LENGTH,)))
        ways = []
        for step in range(7):
            train(strategy, model, linear, 1, first=step)
            mine = [sum(gradient(rank, s, LENGTH) for s in range(step + 1)) for rank in range(world.size)]
            ways.append(mine)
            anchored = ways[(step + 1) // 3 * 3 - 1] if step >= 2 else [torch.zeros(LENGTH)]
            anchor = -sum(anchored) / len(anchored)
            since = ways[step][world.rank] - (anchored[world.rank] if step >= 2 else 0)
            if world.size > 1:  # a rank alone delivers what it has
                assert torch.allclose(strategy.result(), anchor, atol=1e-5)
            assert torch.allclose(model.p0.detach(), anchor - since, atol=1e-5)
        strategy.drain()
        assert torch.allclose(strategy.result(), -sum(ways[-1]) / world.size, atol=1e-5)

    ranks(main, compute="exponential")


def test_cocod_keeps_what_a_rank_does_while_the_mean_travels(ranks):
    def main(world: World):
        strategy = build("cocod period=2 delay=2", world, model := Vectors((LENGTH,)))

        def way(rank: int, stop: int) -> Tensor:
            return sum((gradient(rank, s, LENGTH) for s in range(stop)), torch.zeros(LENGTH))

        for step in range(8):
            train(strategy, model, linear, 1, first=step)
            sent = max(0, (step + 1) // 2 * 2 - 2)  # of which the mean has arrived
            mean = sum(way(rank, sent) for rank in range(world.size)) / world.size
            if world.size > 1:
                assert torch.allclose(strategy.result(), -mean, atol=1e-5)
            expected = -mean - (way(world.rank, step + 1) - way(world.rank, sent))
            assert torch.allclose(model.p0.detach(), expected, atol=1e-5)
        strategy.drain()
        assert torch.allclose(strategy.result(), -sum(way(r, 8) for r in range(world.size)) / world.size, atol=1e-5)

    ranks(main, compute="exponential")


def test_the_outer_optimizers(ranks):
    """Heavy ball and Nesterov on outer gradients, which are the ranks' mean gradients with period 1."""

    def main(world: World):
        for words, nesterov in (("slowmo period=1", False), ("diloco period=1", True)):
            strategy = build(words, world, model := Vectors((LENGTH,)))
            lr, beta = strategy.outer_lr, strategy.outer_momentum
            x, m = torch.zeros(LENGTH), torch.zeros(LENGTH)
            for step in range(6):
                train(strategy, model, linear, 1, first=step)
                mean = sum(gradient(rank, step, LENGTH) for rank in range(world.size)) / world.size
                m = beta * m + mean
                x = x - lr * (mean + beta * m if nesterov else m)
            assert torch.allclose(strategy.result(), x, atol=1e-4)
            strategy.drain()

    ranks(main)


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("diloco period=1 outer_lr=1 outer_momentum=0", "sync"),
        ("local_sgd period=1", "sync"),
        ("streaming_diloco period=6 fragments=1 delay=0", "diloco period=6 outer_lr=0.4"),
        ("slowmo period=6 outer_momentum=0", "local_sgd period=6"),
        ("cocod period=6 delay=0", "local_sgd period=6"),
    ],
)
def test_special_cases_are_other_algorithms(ranks, words, same):
    def main(world: World):
        a, b = (trained(each, world) for each in (words, same))
        assert torch.allclose(a, b, atol=1e-12)
        assert not torch.allclose(a, trained("local_sgd period=5", world, steps=1), atol=1e-2)

    ranks(main)


def test_streaming_sends_each_fragment_once_per_period_and_mixes_it_in_when_it_comes():
    def main(world: World):
        strategy = build("streaming_diloco period=8 fragments=4 delay=1 mix=0.25", world, model := Vectors((8,)))
        changed = []
        for step in range(1, 17):
            before = strategy.result()
            train(strategy, model, lambda m, r, s: m.p0.sum(), 1)
            changed.append(torch.nonzero(strategy.result() - before).view(-1).tolist())
            if step == 3:  # fragment 0 was sent after 2 steps of -1 each
                anchor = -0.4 * 1.9 * 2
                assert model.p0.detach()[:2].tolist() == pytest.approx([0.25 * -3 + 0.75 * anchor] * 2)
                assert model.p0.detach()[2:].tolist() == [-3.0] * 6
        strategy.drain()
        return changed

    spans = [[0, 1], [2, 3], [4, 5], [6, 7]]
    expected = [[]] * 2 + [each for _ in range(2) for span in spans for each in (span, [])]
    assert simulate(main, 2)[0] == expected[:16]


def test_uneven_steps_are_all_in_the_means_of_those_who_made_them(ranks):
    def main(world: World):
        steps = [4 + 3 * rank for rank in range(world.size)]
        strategy = build("local_sgd period=4", world, model := Vectors((LENGTH,)))
        train(strategy, model, linear, steps[world.rank])
        strategy.drain()
        expected = torch.zeros(LENGTH)
        for first in range(0, max(steps), 4):
            ways = [
                sum(gradient(rank, step, LENGTH) for step in range(first, min(first + 4, made)))
                for rank, made in enumerate(steps)
                if made > first
            ]
            expected -= sum(ways) / len(ways)
        assert torch.allclose(strategy.result(), expected, atol=1e-4)

    ranks(main, compute="exponential")


@pytest.mark.parametrize("words", ["local_sgd period=5", "streaming_diloco period=5 fragments=5 delay=4"])
def test_who_waits_is_told_by_the_period(words):
    """Rounds make the fast ranks wait for the slow one, and only rounds do."""

    def main(world: World):
        strategy = build(words, world, model := Vectors((10,)))
        before, waits = world.waited, 0
        for step in range(20):
            waited = world.waited
            train(strategy, model, linear, 1, first=step)
            waits += world.waited > waited
        total = world.waited - before
        strategy.drain()
        return waits, total

    fast, slow = simulate(main, 2, compute="slow:1:3")
    assert slow == (0, 0.0)
    assert fast[0] == (4 if words.startswith("local") else 14)
    assert fast[1] == pytest.approx(40.0 if words.startswith("local") else 28.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("local_sgd period=0", "period=0: it counts steps, so 1 or more"),
        ("local_sgd delay=11", "delay=11: it counts steps, from 0 to the period of 10"),
        ("diloco outer_lr=0", "outer_lr=0: it is above 0"),
        ("slowmo outer_momentum=1", "outer_momentum=1: it is in [0, 1)"),
        ("streaming_diloco fragments=0", "fragments=0: they are sent one per step at most, so from 1 to 100"),
        ("streaming_diloco mix=1", "mix=1: it is a share that is kept, in [0, 1)"),
    ],
)
def test_values_out_of_range(words, message):
    with pytest.raises(UsageError) as error:
        simulate(lambda world: build(words, world, Vectors((2,))), 2)
    assert str(error.value) == message
