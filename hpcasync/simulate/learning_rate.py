"""The step size with which a simulated training reaches its tolerance soonest: of one seed, or of several."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from hpcasync.simulate.trial import Outcome

PATIENCE = 3  # step sizes in a row that are no better than the best, and the search turns
STEADY_PATIENCE = 2  # the same, of several seeds
SMALLEST = 2.0**-40  # times 1/L: nobody waits for that
FIRST = 4.0  # times 1/L, twice what gradient descent can bear; the search goes on above if this is the best
BUDGETS = 6  # each four times as long as the one before

Try = Callable[[float, float], Outcome]  # (step size, virtual seconds after which it has lost) -> what became of it
TrySeed = Callable[[float, int], Outcome]  # (step size, seed) -> what became of it


def grid(index: int) -> float:
    """The step sizes 2^(index / 2)."""
    return math.pow(2.0, index / 2)


def best_rate(attempt: Try, smoothness: float, seconds: float) -> tuple[float, dict[float, Outcome]]:
    """The best step size of the grid, and what became of each that was tried, from small to large.

    From 4/L downwards, and upwards if the largest is the best, until three in a row are no better. Of two that do not
    reach the tolerance, the one that ends nearer to the optimum is better. A trial that has lost to the best so far is
    broken off. All are given a short time first, and a longer one only if none gets there, up to ``seconds``: a step
    size that never gets there costs no more than a few of those that do.
    """
    top = math.floor(2 * math.log2(FIRST / smoothness))
    bottom = math.floor(2 * math.log2(SMALLEST / smoothness))
    for shorter in reversed(range(BUDGETS)):
        search = _Search(attempt, seconds / 4**shorter)
        search.walk(range(top, bottom, -1))
        if search.best == top:
            search.walk(range(top + 1, 2 * top - bottom))
        if search.tried[search.best].seconds_to_tolerance is not None:
            break
    tried = {grid(index): outcome for index, outcome in sorted(search.tried.items())}
    return grid(search.best), tried


def steady_rate(attempt: TrySeed, seeds: int, near: float) -> tuple[float, list[Outcome]]:
    """The step size of the grid around ``near`` whose median of ``seeds`` trainings is best, and these trainings.

    The best step size of a single training lies at the edge of stability, where another seed takes several times as
    long. So one with which more seeds reach the tolerance is better, whatever the median. From ``near`` downwards and
    upwards, until two in a row are no better.
    """
    start = round(2 * math.log2(near))
    best, outcomes = start, [attempt(grid(start), seed) for seed in range(seeds)]
    for direction in (-1, 1):
        index, worse = start, 0
        while worse < STEADY_PATIENCE:
            index += direction
            found = _seeds(attempt, seeds, grid(index), _missed(outcomes))
            if _median_rank(found) < _median_rank(outcomes):
                best, outcomes, worse = index, found, 0
            else:
                worse += 1
    return grid(best), outcomes


def _seeds(attempt: TrySeed, seeds: int, lr: float, missed: int) -> list[Outcome]:
    """A training per seed, until more than ``missed`` of them have missed the tolerance."""
    outcomes: list[Outcome] = []
    while len(outcomes) < seeds and _missed(outcomes) <= missed:
        outcomes.append(attempt(lr, len(outcomes)))
    return outcomes


def _missed(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome.seconds_to_tolerance is None for outcome in outcomes)


def _median_rank(outcomes: Sequence[Outcome]) -> tuple[int, float]:
    """Smaller is better."""
    return _missed(outcomes), statistics.median(_rank(outcome)[0] for outcome in outcomes)


class _Search:
    """The step sizes tried so far, by their places on the grid."""

    def __init__(self, attempt: Try, seconds: float) -> None:
        self._attempt, self._seconds = attempt, seconds
        self.tried: dict[int, Outcome] = {}
        self.best = 0

    def walk(self, indices: range) -> None:
        worse = 0
        for index in indices:
            outcome = self._attempt(grid(index), self._seconds)
            first = not self.tried
            self.tried[index] = outcome
            if first or _rank(outcome) < _rank(self.tried[self.best]):
                self.best, worse = index, 0
                self._seconds = outcome.seconds_to_tolerance or self._seconds
            elif not self.tried[self.best].diverged:
                worse += 1
            if worse == PATIENCE:
                return


def _rank(outcome: Outcome) -> tuple[float, float]:
    """Smaller is better."""
    reached = outcome.seconds_to_tolerance
    return (math.inf, outcome.gap) if reached is None else (reached, 0.0)
