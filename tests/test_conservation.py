"""Nothing generated is lost, nothing is applied twice: whatever the ranks' steps, speeds, periods and message costs."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcasync.sim import simulate
from hpcasync.world import World
from tests.training import Vectors, build, gradient, linear, train

LENGTH = 11
some_ranks = st.lists(st.integers(0, 9), min_size=1, max_size=5)  # the steps that each rank makes
some_network = st.sampled_from([(0.0, 0.0), (0.3, 0.0), (0.05, 0.01)])  # seconds per message and per byte
examples = settings(max_examples=40)


def delivered(words: str, steps: list[int], seed: int, network: tuple[float, float]) -> list[torch.Tensor]:
    def main(world: World):
        strategy = build(words, world, model := Vectors((4, 2), (3,)))
        train(strategy, model, linear, steps[world.rank])
        strategy.drain()
        return strategy.result()

    alpha, beta = network
    return simulate(main, len(steps), compute="exponential", seed=seed, alpha=alpha, beta=beta)


@examples
@given(some_ranks, st.integers(1, 4), st.integers(1, 4), st.sampled_from(["0", "1", "3", "inf"]), some_network)
def test_downpour_applies_every_gradient_once(steps, push, pull, bound, network):
    generated = torch.zeros(LENGTH) + sum(gradient(r, s, LENGTH) for r, made in enumerate(steps) for s in range(made))
    for result in delivered(f"downpour push={push} pull={pull} bound={bound}", steps, push + pull, network):
        assert torch.allclose(result, -generated, atol=1e-4)


@examples
@given(some_ranks, st.integers(0, 4), some_network)
def test_stale_applies_every_round_once_with_the_mean_of_those_who_made_it(steps, bound, network):
    expected = torch.zeros(LENGTH)
    for step in range(max(steps)):
        made = [gradient(rank, step, LENGTH) for rank, count in enumerate(steps) if step < count]
        expected -= sum(made) / len(made)
    for result in delivered(f"stale bound={bound}", steps, bound, network):
        assert torch.allclose(result, expected, atol=1e-4)


@examples
@given(some_ranks, st.integers(0, 99), some_network)
def test_hogwild_applies_every_gradient_once_where_no_two_writes_collide(steps, seed, network):
    generated = torch.zeros(LENGTH) + sum(gradient(r, s, LENGTH) for r, made in enumerate(steps) for s in range(made))
    for result in delivered("hogwild", steps, seed, network):
        assert torch.equal(result, -generated)


def test_what_is_generated_is_applied_or_buffered_at_any_moment():
    """Mid-run: the center plus what the ranks have not pushed yet is everything generated so far."""

    def main(world: World):
        strategy = build("downpour push=3 pull=5", world, model := Vectors((4, 2), (3,)))
        train(strategy, model, linear, 7)
        strategy.world.barrier()
        buffered = model.p0.new_zeros(LENGTH)
        for center in strategy._centers:
            buffered += center.pair.params - center.anchor
        world.allreduce(buffered)
        return strategy.result() + buffered

    generated = sum(gradient(rank, step, LENGTH) for rank in range(3) for step in range(7))
    for total in simulate(main, 3, compute="sqrt"):
        assert torch.allclose(total, -generated, atol=1e-4)
