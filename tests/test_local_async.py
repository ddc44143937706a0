"""Asynchronous local SGD: delayed Nesterov by its recurrence, dynamic local steps, two levels; nothing lost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.sim import simulate
from hpcasync.strategies.tally import Tally
from hpcasync.world import World
from tests.training import Vectors, build, classifier, digits_loss, gradient, linear, train

LENGTH = 40


def test_delayed_nesterov_with_n_1_and_c_0_is_nesterov():
    def loss(model, rank, step):
        return digits_loss(lambda x: model(x.double()), rank, step)

    plain = classifier().double()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.7 * 0.1, momentum=0.9, nesterov=True)
    for step in range(30):
        optimizer.zero_grad()
        loss(plain, 0, step).backward()
        optimizer.step()
    expected = torch.cat([p.detach().flatten() for p in plain.parameters()])

    def main(world: World):
        model = classifier().double()
        strategy = build("delayed_nesterov period=1 every=1 c=0", world, model, lr=0.1)
        train(strategy, model, loss, 30)
        strategy.drain()
        return strategy.result()

    assert torch.allclose(simulate(main, 1)[0], expected, atol=1e-12)


def recurrence(ways: list[Tensor], n: int, c: float) -> Tensor:
    """Algorithm 3 of the paper, from zero, with lr 0.7 and beta 0.9."""
    x, m, buffer = torch.zeros(LENGTH), torch.zeros(LENGTH), torch.zeros(LENGTH)
    for number, way in enumerate(ways, start=1):
        buffer += way
        if number % n == 0:
            m = 0.9 * m + buffer / n
            x = x - 0.7 * ((1 - c * n + c) * 0.9 * m + way / n)
            buffer = torch.zeros(LENGTH)
        else:
            x = x - 0.7 * (c * 0.9 * m + way / n)
    return x


@pytest.mark.parametrize("c", [0.0, 0.25])
def test_the_recurrence_of_the_paper(ranks, c):
    def main(world: World):
        words = f"delayed_nesterov period=2 every=3 c={c}"
        strategy, ways = build(words, world, model := Vectors((LENGTH,))), []
        for number in range(5):
            for turn in range(world.size):
                ways.append(gradient(turn, 2 * number, LENGTH) + gradient(turn, 2 * number + 1, LENGTH))
                if turn == world.rank:
                    train(strategy, model, linear, 2, first=2 * number)
                world.barrier()
        assert torch.allclose(strategy.result(), recurrence(ways, 3, c), rtol=1e-4, atol=1e-3)
        strategy.drain()

    ranks(main)


counts = st.lists(st.integers(0, 9), min_size=1, max_size=5)


@settings(max_examples=25)
@given(counts, st.integers(1, 4), st.sampled_from([0.0, 0.2]))
def test_without_momentum_every_way_counts_once(steps, period, alpha):
    def main(world: World):
        words = f"delayed_nesterov period={period} every=2 outer_lr=1 outer_momentum=0"
        strategy = build(words, world, model := Vectors((LENGTH,)))
        train(strategy, model, linear, steps[world.rank])
        strategy.drain()
        return strategy.result()

    made = sum((gradient(r, s, LENGTH) for r, n in enumerate(steps) for s in range(n)), torch.zeros(LENGTH))
    for result in simulate(main, len(steps), compute="exponential", alpha=alpha):
        assert torch.allclose(result, -made / 2, atol=1e-4)


def test_a_tally_lets_one_act_at_a_time_and_forgets_nobody():
    acting, most, acted = set(), [0], []

    def main(world: World):
        tally = Tally(world, keeper=0)
        world.barrier()
        for _ in range(12):
            world.computed(0.0)
            if tally.arrive(3):
                acting.add(world.rank)
                most[0] = max(most[0], len(acting))
                acted.append(world.rank)
                world.computed(0.0)
                acting.remove(world.rank)
                tally.done()
        world.barrier()
        return int(tally.local[0]), tally.so_far()

    waiting, arrived = simulate(main, 5, compute="exponential", alpha=0.2)[0]
    assert most == [1]
    assert arrived == 60
    assert 5 <= len(acted) <= 20
    assert 0 <= waiting - (1 << 40) < 15


def test_slower_ranks_make_fewer_steps_between_two_exchanges():
    def main(world: World):
        strategy = build("dylu period=12", world, model := Vectors((2,)))
        due = []
        for step in range(40):
            train(strategy, model, linear, 1, first=step)
            due.append(strategy._steps_due)
        return due

    due = simulate(main, 3, compute="slow:2:4")
    assert set(due[0]) == {12}
    assert set(due[2]) == {12, 3}
    assert due[2][12] == 3  # from its first exchange on


def test_nobody_waits_for_a_slow_rank():
    for words in ("delayed_nesterov period=2", "halos period=2 accumulate=3"):

        def main(world: World, words=words):
            strategy = build(words, world, model := Vectors((LENGTH,)))
            before = world.waited
            train(strategy, model, linear, 12)
            return world.waited - before

        assert simulate(main, 4, compute="slow:3:40", ranks_per_node=2) == [0.0] * 4


@settings(max_examples=25)
@given(counts, st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.sampled_from([0.3, 1.0]))
def test_two_levels_bring_every_way_to_the_center_once(steps, period, accumulate, per_node, mix):
    def main(world: World):
        words = f"halos period={period} accumulate={accumulate} mix={mix} outer_lr=1 outer_momentum=0"
        strategy = build(words, world, model := Vectors((LENGTH,)))
        train(strategy, model, linear, steps[world.rank])
        strategy.drain()
        return strategy.result(), world.node.size

    ended = simulate(main, len(steps), compute="exponential", alpha=0.1, ranks_per_node=per_node)
    expected = torch.zeros(LENGTH)
    for rank, made in enumerate(steps):
        expected -= sum((gradient(rank, s, LENGTH) for s in range(made)), torch.zeros(LENGTH)) / ended[rank][1]
    nodes = -(-len(steps) // per_node)
    for result, _ in ended:
        assert torch.allclose(result, expected / nodes, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("delayed_nesterov period=0", "period=0: it counts steps, so 1 or more"),
        ("delayed_nesterov every=-1", "every=-1: it counts updates, so 1 or more, or 0 for one per rank"),
        ("delayed_nesterov c=0.6", "c=0.6: it is a share of the momentum, from 0 to 1 / 2"),
        ("delayed_nesterov outer_lr=0", "outer_lr=0: it is above 0"),
        ("dylu outer_momentum=1", "outer_momentum=1: it is in [0, 1)"),
        ("halos accumulate=0", "accumulate=0: it counts exchanges, so 1 or more"),
        ("halos mix=0", "mix=0: it is a share, above 0 and up to 1"),
        ("halos outer_lr=0", "outer_lr=0: it is above 0"),
        ("halos outer_momentum=1", "outer_momentum=1: it is in [0, 1)"),
    ],
)
def test_values_out_of_range(words, message):
    with pytest.raises(UsageError) as error:
        simulate(lambda world: build(words, world, Vectors((2,))), 2)
    assert str(error.value) == message
