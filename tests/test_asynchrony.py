"""What theory says of delays, staleness and throughput, measured on simulated ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from hpcasync.clock import Clock
from hpcasync.sim import simulate
from hpcasync.world import World
from tests.training import Vectors, build, linear, train


class Mode(nn.Module):
    """One quadratic mode: f(x) = lambda x^2 / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("tau", range(8))
@pytest.mark.parametrize("fraction", [0.98, 1.02])
def test_a_fixed_delay_is_stable_up_to_its_limit(tau, fraction):
    """x_{t+1} = x_t - gamma lambda x_{t-tau} is stable iff gamma lambda < 2 sin(pi / (2 (2 tau + 1)))."""
    rate = fraction * 2 * math.sin(math.pi / (2 * (2 * tau + 1)))

    def main(world: World) -> float:
        model = Mode()
        strategy = build(f"stale bound={tau}", world, model, lr=rate)
        peaks = []
        for _ in range(2):
            highest = 0.0
            for _ in range(150 * (tau + 1)):
                (0.5 * model.x.square()).sum().backward()
                strategy.step()
                highest = max(highest, abs(model.x.item()))
            peaks.append(highest)
        strategy.drain()
        return peaks[1] / peaks[0]

    growth = simulate(main, 1)[0]
    assert growth < 0.5 if fraction < 1 else growth > 2


@dataclass(frozen=True)
class Staggered:
    """Every step takes 1, but rank r starts r / size late, so that the ranks take turns."""

    size: int

    def draw(self, rng: np.random.Generator, rank: int, step: int) -> float:
        return 1 + rank / self.size * (step == 0)


def staleness_of(words: str, size: int, compute: str | Staggered, steps: int):
    def main(world: World):
        strategy = build(words, world, model := Vectors((2,)))
        train(strategy, model, None, steps)
        world.barrier()
        return strategy.staleness

    return simulate(main, size, compute=compute)


@pytest.mark.parametrize("words", ["hogwild", "downpour"])
@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_equal_ranks_see_a_staleness_of_n_minus_1(words, size):
    for rank, staleness in enumerate(staleness_of(words, size, Staggered(size), steps=40)):
        assert staleness.histogram == {rank: 1} | {size - 1: 39 + (rank == size - 1)}  # rank 0 was first with its first


@pytest.mark.parametrize("words", ["hogwild", "downpour"])
def test_exponential_compute_gives_geometric_staleness(words):
    """With memoryless compute the next update is anyone's: P(staleness = k) = (1/n)(1 - 1/n)^k, mean n - 1."""
    size, steps = 4, 2500
    runs = staleness_of(words, size, "exponential", steps)
    total = sum(s.count for s in runs)
    mean = sum(s.mean * s.count for s in runs) / total
    fresh = sum(s.histogram[0] for s in runs) / total
    assert mean == pytest.approx(size - 1, rel=0.05)
    assert fresh == pytest.approx(1 / size, abs=0.02)


def rate(words: str, size: int, steps: int, seed: int = 0) -> float:
    """Updates a second with exponential compute of mean 1, all ranks together, while all of them make steps."""

    def main(world: World):
        strategy = build(words, world, model := Vectors((2,)))
        train(strategy, model, None, steps)
        ended = world.now()
        strategy.drain()
        return ended

    ended = simulate(main, size, compute="exponential", seed=seed)
    return size * steps / (sum(ended) / size)


@pytest.mark.parametrize(
    ("bound", "expected"),
    [("0", 1.92), ("1", 2.64), ("2", 2.98), ("4", 3.34), ("8", 3.61), ("16", 3.78), ("inf", 4.00)],
)
def test_throughput_of_ssp_with_exponential_compute(bound, expected):
    size, steps = 4, 2500

    def main(world: World) -> float:
        clock = Clock(world, float(bound))
        for _ in range(steps):
            world.computed(0.0)
            clock.advance()
            clock.gate()
        clock.leave()
        return world.now()

    ended = simulate(main, size, compute="exponential")
    assert steps * size / (sum(ended) / size) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_asynchronous_over_synchronous_throughput_is_the_harmonic_number(size):
    harmonic = sum(1 / k for k in range(1, size + 1))
    synchronous, asynchronous = rate("sync", size, 1000), rate("hogwild", size, 1000)
    assert synchronous == pytest.approx(size / harmonic, rel=0.05)
    assert asynchronous / synchronous == pytest.approx(harmonic, rel=0.05)


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_the_gap_between_ranks_that_compute_never_exceeds_the_bound(bound):
    clocks = {}

    def main(world: World):
        clocks[world.rank] = clock = Clock(world, bound)
        world.barrier()
        gaps = []
        for _ in range(300):
            gaps.append(clock.steps - min(other.steps for other in clocks.values()))
            world.computed(0.0)
            clock.advance()
            clock.gate()
        clock.leave()
        return max(gaps)

    assert max(simulate(main, 4, compute="exponential", seed=3)) == bound


def test_a_clock_that_is_open_lets_the_next_step_begin_without_a_look():
    """It knows nothing of the others at first, nor after a restore, and what its gate has seen in between."""

    def main(world: World) -> tuple[list[bool], bool, bool]:
        clock = Clock(world, bound=2)
        at_first = []
        for _ in range(3):
            at_first.append(clock.open())
            clock.advance()
        world.barrier()
        clock.gate()  # all have made 3 steps
        after_the_gate = clock.open()
        clock.restore(3)
        return at_first, after_the_gate, clock.open()

    assert simulate(main, 3) == [([True, True, False], True, False)] * 3


def test_a_bound_of_0_equals_sync():
    """Lockstep: with bound 0 every rank reads all updates of the round before, which sync sums as a mean."""

    def main(world: World):
        results = []
        for words, lr in (("sync", 1.0), ("downpour bound=0", 1.0 / world.size)):
            strategy = build(words, world, model := Vectors((6,)), lr=lr)
            train(strategy, model, linear, 20)
            strategy.drain()
            results.append(strategy.result())
        assert torch.allclose(*results, atol=1e-4)

    simulate(main, 4, compute="exponential")


def test_a_rank_that_left_is_not_waited_for():
    def main(world: World):
        strategy = build("downpour bound=1", world, model := Vectors((2,)))
        train(strategy, model, linear, steps=2 if world.rank == 0 else 50)
        if world.rank == 0:
            strategy.drain()
            return None
        ended = world.now()
        strategy.drain()
        return ended

    assert simulate(main, 2, compute="constant")[1] == pytest.approx(50.0)
