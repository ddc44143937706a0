"""How fast every rank of a run has been lately, and which of them lag behind."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hpcasync.report.read import Evaluation, number, rank_of
from hpcasync.report.tail import EVALUATION, Tail, evaluation, record

LATELY = 100  # steps
TAIL_BYTES = 1 << 15  # some two hundred steps
LOSSES = 200  # are kept of a long file
STRAGGLER = 1.5  # times as long per step as the median of the ranks

_KEPT = ("step", "seconds", "loss", "samples", "staleness", "waited")


class Pace:
    """One rank's last steps.

    Attributes:
        rank: its number at the start.
        died_seconds: after so many seconds; None while it lives.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.died_seconds: float | None = None
        self._steps: deque[dict[str, float]] = deque(maxlen=LATELY)

    def add(self, line: dict[str, Any]) -> None:
        """Another line of its file; one that is no step is passed over."""
        values = {name: number(line.get(name)) for name in _KEPT}
        if "loss" in line and math.isfinite(values["step"]) and math.isfinite(values["seconds"]):
            if self._steps and values["step"] <= self._steps[-1]["step"]:
                self._steps.clear()  # resumed from an earlier step
            self._steps.append(values)

    @property
    def steps(self) -> int:
        return int(self._last("step", 0.0))

    @property
    def seconds(self) -> float:
        """Since the start of the run, at the last step."""
        return self._last("seconds", 0.0)

    @property
    def loss(self) -> float:
        """Median of the last steps'; NaN before the first."""
        losses = [step["loss"] for step in self._steps if math.isfinite(step["loss"])]
        return statistics.median(losses) if losses else math.nan

    @property
    def staleness(self) -> float:
        """Mean of the last steps'."""
        known = [step["staleness"] for step in self._steps if step["staleness"] >= 0]
        return statistics.fmean(known) if known else math.nan

    @property
    def samples_per_second(self) -> float:
        return self._per("samples", "seconds")

    @property
    def busy_seconds(self) -> float:
        """Per step, without waiting: what makes a straggler, also where all are held up by it."""
        return self._per("seconds", "step") * (1 - self.wait_share)

    @property
    def wait_share(self) -> float:
        """Of its time, spent waiting for others."""
        return self._per("waited", "seconds")

    def _per(self, above: str, below: str) -> float:
        """The growth of one over the growth of the other, over the last steps."""
        if len(self._steps) < 2:
            return math.nan
        first, last = self._steps[0], self._steps[-1]
        grown = last[below] - first[below]
        return (last[above] - first[above]) / grown if grown > 0 else math.nan

    def _last(self, name: str, default: float) -> float:
        return self._steps[-1][name] if self._steps else default


class Paces:
    """Every rank of the run in ``folder``, followed from the end of its file on; and the run's evaluations.

    Attributes:
        ranks: {rank: Pace}.
        evaluations: in the order of their seconds: all of rank 0's, and of another rank that has led since it died
            those near the end of its file.
        losses: some of rank 0's, over the whole run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tails: dict[Path, Tail] = {}
        self.ranks: dict[int, Pace] = {}
        self.evaluations: list[Evaluation] = []
        self.losses: list[float] = []

    def look(self) -> None:
        """Read what has been written since the last look."""
        for path in self._folder.glob("metrics.rank*.jsonl"):
            rank = rank_of(path.name)
            if rank < 0:
                continue
            tail = self._tails.setdefault(path, Tail(path, None if rank == 0 else TAIL_BYTES))
            pace = self.ranks.setdefault(rank, Pace(rank))
            lines = tail.lines()
            for line in (line for line in lines if EVALUATION in line):
                self._evaluated(evaluation(record(line)))
            steps = [line for line in lines if EVALUATION not in line]
            for line in steps[-LATELY:]:
                pace.add(record(line))
            if rank == 0:
                kept = (number(record(line).get("loss")) for line in steps[:: 1 + len(steps) // LOSSES])
                self.losses += [loss for loss in kept if math.isfinite(loss)]

    def _evaluated(self, latest: Evaluation) -> None:
        while self.evaluations and self.evaluations[-1].seconds >= latest.seconds:
            self.evaluations.pop()  # of before a resume
        self.evaluations.append(latest)

    def lose(self, failures: Iterable[Any]) -> None:
        """Note the deaths that run.json tells of: these and no others."""
        for pace in self.ranks.values():
            pace.died_seconds = None
        for failure in failures:
            if isinstance(failure, dict) and failure.get("rank") in self.ranks:
                self.ranks[failure["rank"]].died_seconds = number(failure.get("seconds"))


def stragglers(paces: Sequence[Pace]) -> dict[int, float]:
    """{rank: how many times as long as the median its steps take}, where that is much; the slowest first."""
    busy = {pace.rank: pace.busy_seconds for pace in paces if pace.died_seconds is None}
    known = {rank: seconds for rank, seconds in busy.items() if seconds > 0}
    if len(known) < 2:
        return {}
    usual = statistics.median_low(known.values())
    slow = {rank: seconds / usual for rank, seconds in known.items() if seconds > STRAGGLER * usual}
    return dict(sorted(slow.items(), key=lambda item: -item[1]))
