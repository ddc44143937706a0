"""``--lr auto``: the step size with which a simulated training reaches its tolerance soonest."""

from __future__ import annotations

import math
from collections.abc import Callable

from hpcasync.simulate.trial import Outcome

PATIENCE = 3  # step sizes in a row that are no better than the best, and the search turns
SMALLEST = 2.0**-40  # times 1/L: nobody waits for that
FIRST = 4.0  # times 1/L, twice what gradient descent can bear; the search goes on above if this is the best
BUDGETS = 6  # each four times as long as the one before

Try = Callable[[float, float], Outcome]  # (step size, virtual seconds after which it has lost) -> what became of it


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
