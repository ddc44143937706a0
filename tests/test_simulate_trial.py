"""hpcasync simulate: closed forms for time and rates, the step-size search, and a thousand ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hpcasync.simulate.learning_rate import best_rate, grid, steady_rate
from hpcasync.simulate.problems import Problem, Tridiagonal
from hpcasync.simulate.result import rows
from hpcasync.simulate.trial import Outcome
from tests.simulate_trials import attempt


class Parabola(Problem):
    """f(x) = curvature x²/2 from x0 = 1: gradient descent gets there in one step of 1/curvature."""

    def __init__(self, curvature: float) -> None:
        self.smoothness, self.start, self.optimum = curvature, np.ones(1), 0.0

    def value(self, x):
        return float(self.smoothness * x[0] ** 2 / 2)

    def gradient(self, x, rank, rng):
        return self.smoothness * x


# Time and rates


@pytest.mark.parametrize(
    ("compute", "slowest"), [("constant:0.5", 0.5), ("sqrt", math.sqrt(5)), ("slow:2:7", 7.0)], ids=str
)
def test_synchronous_time_is_steps_times_the_slowest(compute, slowest):
    lr, curvature, until = 0.25, 2.0, 1e-3
    steps = math.ceil(math.log(until) / (2 * math.log(1 - lr * curvature)))
    _, outcome = attempt(ranks=5, compute=compute, lr=lr, until=until, problem=Parabola(curvature))
    assert outcome.seconds_to_tolerance == pytest.approx(steps * slowest)
    assert outcome.updates == steps
    assert outcome.gap == pytest.approx((1 - lr * curvature) ** (2 * steps))


@pytest.mark.parametrize("words", ["hogwild", "downpour"])
def test_asynchronous_updates_per_second_are_the_sum_of_speeds(words):
    seconds = 60.0
    _, outcome = attempt(words, ranks=9, compute="sqrt", lr=0.01, seconds=seconds)
    assert outcome.updates == outcome.steps == sum(math.floor(seconds / math.sqrt(i) + 1e-9) for i in range(1, 10))
    assert outcome.seconds == seconds
    assert outcome.waited == 0


def test_waiting_is_what_the_slowest_makes_the_others_lose():
    _, outcome = attempt(ranks=3, compute="slow:1:4", seconds=40.0, lr=0.1)
    assert outcome.waited == pytest.approx(2 / 3 * 30.0)


def test_a_message_costs_alpha_and_beta():
    length = 50
    seconds = 1 + 2 * 0.25 + 2 * 0.01 * 8 * (length + 1) * 3 / 4  # ceil(log2 4) = 2
    _, outcome = attempt(ranks=4, lr=0.1, seconds=100.0, alpha=0.25, beta=0.01)
    assert outcome.updates == math.floor(100 / seconds)


def test_staleness_of_equal_ranks_is_their_number_less_one():
    _, outcome = attempt("hogwild", ranks=6, compute="exponential", lr=0.01, seconds=400.0)
    mean = sum(value * times for value, times in outcome.staleness.items()) / outcome.staleness.total()
    assert outcome.staleness.total() == outcome.updates
    assert mean == pytest.approx(5.0, abs=0.2)


@pytest.mark.parametrize("ranks_per_node", [1, 2, 4])
def test_ranks_share_memory_with_their_node_only(ranks_per_node):
    more = {"compute": "exponential", "lr": 0.01, "seconds": 400.0, "ranks_per_node": ranks_per_node}
    _, outcome = attempt("hogwild_nodes period=1000", ranks=4, **more)
    mean = sum(value * times for value, times in outcome.staleness.items()) / outcome.staleness.total()
    assert mean == pytest.approx(ranks_per_node - 1, abs=0.2)


def test_a_seed_gives_one_outcome():
    def outcome(seed):
        return attempt("hogwild", compute="exponential", lr=0.1, until=0.05, seed=seed, problem=Tridiagonal(noise=0.01))

    assert outcome(1)[1] == outcome(1)[1] != outcome(2)[1]


def test_divergence_ends_a_trial():
    setting, outcome = attempt(lr=8.0, until=0.1)
    assert outcome.diverged
    assert outcome.seconds < 100
    row = rows("case", "sync", setting, 8.0, outcome)[0]
    assert (row.metric, row.value) == ("seconds_to_tolerance", None)
    assert "diverged after" in (row.error or "")


# The step size


@pytest.mark.parametrize("curvature", [1.0, 4.0, 2.0**-7, 2.0**1.5])
def test_the_best_step_size_of_a_parabola_is_one_over_its_curvature(curvature):
    def attempt_lr(lr, seconds):
        return attempt(ranks=2, lr=lr, until=1e-9, seconds=seconds, problem=Parabola(curvature))[1]

    best, tried = best_rate(attempt_lr, curvature, 1e4)
    assert best == pytest.approx(1 / curvature)
    assert tried[best].seconds_to_tolerance == 1.0
    assert list(tried) == sorted(tried)


def test_the_search_finds_what_trying_everything_finds():
    def attempt_lr(lr, seconds):
        return attempt("hogwild", ranks=3, compute="exponential", lr=lr, until=0.01, seconds=seconds)[1]

    best, tried = best_rate(attempt_lr, 1.0, 500.0)
    times = {grid(k): attempt_lr(grid(k), 500.0).seconds_to_tolerance or math.inf for k in range(-12, 5)}
    assert tried[best].seconds_to_tolerance == min(times.values()) == times[best]


def test_the_search_goes_up_when_the_largest_is_the_best():
    best, _ = best_rate(lambda lr, _: Outcome(seconds_to_tolerance=abs(lr - 64) + 1), 1.0, 1e4)
    assert best == pytest.approx(64)


def test_where_nothing_is_good_enough_the_nearest_is_best():
    best, tried = best_rate(lambda lr, _: Outcome(gap=max(lr, 0.01 / lr)), 1.0, 1e4)
    assert best == pytest.approx(2**-3.5)  # of the grid, nearest to 0.1
    assert tried[best].seconds_to_tolerance is None


def of_seeds(times):
    """A training whose seconds are looked up by step size and seed; what is not there misses the tolerance."""
    return lambda lr, seed: Outcome(seconds_to_tolerance=times.get(lr, (None,) * 3)[seed])


def test_a_step_size_is_chosen_by_the_median_of_its_seeds():
    attempt = of_seeds({1.0: (1.0, 9.0, 9.0), 0.5: (5.0, 4.0, 6.0), 2.0: (2.0, 8.0, 8.0)})
    lr, outcomes = steady_rate(attempt, 3, 1.0)
    assert lr == 0.5
    assert [outcome.seconds_to_tolerance for outcome in outcomes] == [5.0, 4.0, 6.0]


def test_a_step_size_that_fails_a_seed_loses_to_one_that_fails_none():
    lr, outcomes = steady_rate(of_seeds({1.0: (1.0, 1.0, None), 0.5: (7.0, 8.0, 9.0)}), 3, 1.0)
    assert (lr, len(outcomes)) == (0.5, 3)
    lr, outcomes = steady_rate(of_seeds({1.0: (3.0, None, None), 0.5: (4.0, None, 4.0)}), 3, 1.0)
    assert (lr, outcomes[1].seconds_to_tolerance) == (0.5, None)


def test_larger_step_sizes_are_looked_at_too():
    assert steady_rate(lambda lr, seed: Outcome(seconds_to_tolerance=abs(lr - 8) + 1), 3, 2.0)[0] == pytest.approx(8)


# Size


@pytest.mark.timeout(300)
@pytest.mark.parametrize("words", ["sync", "hogwild", "downpour"])
def test_a_thousand_ranks(words):
    _, outcome = attempt(words, ranks=1000, compute="sqrt", lr=1e-4, seconds=3.0)
    expected = sum(math.floor(3 / math.sqrt(i)) for i in range(1, 1001)) if words != "sync" else 0
    assert outcome.steps == expected
    assert torch.get_num_threads() == 1
