"""A trial's evaluations on a clock that all trials share, for Optuna to compare them while they run."""

from __future__ import annotations

import math
from typing import Protocol

from hpcasync.report.read import Evaluation

FIRST_TICK = -40  # 2^-20 s: before any evaluation
TICKS_AFTER = 12  # 64 times as long as the run


class Reports(Protocol):
    """What of an ``optuna.Trial`` is needed here."""

    def report(self, value: float, step: int) -> None: ...
    def should_prune(self) -> bool: ...


class Curve:
    """Reports, at every tick of the clock, the last evaluation up to then.

    Evaluations come at other moments in every trial, but Optuna compares trials at the same step. So step k stands for
    2^(k/2) seconds, or for the 2^(k/2)-th evaluation where neither --seconds nor --target makes a trial's time count.
    What is reported is a cost: smaller is better, whatever the metric.

    Args:
        better: which values of the metric are better: "higher" or "lower".

    Attributes:
        metric, value: of the last evaluation: the job's primary metric.
    """

    def __init__(self, trial: Reports, by_seconds: bool, better: str) -> None:
        self._trial, self._by_seconds = trial, by_seconds
        self._tick, self._count, self._seconds = FIRST_TICK, 0, -math.inf
        self.metric, self.value, self.better = "", math.nan, better

    @property
    def cost(self) -> float:
        """Of the last evaluation; NaN before the first, and of one that is no number."""
        return -self.value if self.better == "higher" else self.value

    @property
    def has_diverged(self) -> bool:
        """The last evaluation has no number for the metric."""
        return self._count > 0 and not math.isfinite(self.value)

    def add(self, evaluation: Evaluation) -> bool:
        """Take in the next evaluation; True if the trial should end here. One that was there before is passed over."""
        if evaluation.seconds <= self._seconds or not evaluation.values:
            return False
        before = self.cost
        self._seconds, self._count = evaluation.seconds, self._count + 1
        self.metric, self.value = next(iter(evaluation.values.items()))
        now = self._seconds if self._by_seconds else float(self._count)
        while _moment(self._tick) <= now:
            self._report(self.cost if _moment(self._tick) == now else before)
            self._tick += 1
        return self.has_diverged or self._trial.should_prune()

    def end(self) -> None:
        """The run is over: what it has reached stands for all later ticks."""
        for _ in range(TICKS_AFTER):
            self._report(self.cost)
            self._tick += 1

    def _report(self, cost: float) -> None:
        if math.isfinite(cost):
            self._trial.report(cost, self._tick - FIRST_TICK)


def _moment(tick: int) -> float:
    return math.pow(2.0, tick / 2)
