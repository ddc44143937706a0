"""What rank 0 does for all: evaluations, the line that moves, run.json, the last word."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from typing import Any

from hpcasync.launch.boxes import DONE, ERROR, LOST, RUNNING, STOPPED
from hpcasync.run.evaluation import Evaluate, Evaluation
from hpcasync.run.metrics import Metric, Totals, figure, summarize
from hpcasync.run.options import Options
from hpcasync.run.progress import Progress, closing
from hpcasync.run.record import Record
from hpcasync.run.say import say, tell_launcher
from hpcasync.strategies import Strategy


class Leader:
    """The rank that is 0 in the World: the first of the survivors takes over when it dies.

    Args:
        evaluate, metrics: see :meth:`hpcasync.run.Run.start`.
        rank: its number at the start.
    """

    def __init__(
        self,
        record: Record,
        options: Options,
        strategy: Strategy,
        evaluate: Evaluate,
        metrics: Sequence[Metric],
        rank: int,
    ) -> None:
        self.record, self._options, self._rank = record, options, rank
        self._evaluate, self._metrics = evaluate, metrics
        self.progress = Progress(" ".join(options.strategy))
        tell_launcher(f"{RUNNING}{record.folder}")
        self.follow(strategy)
        self._seconds_to_target: float | None = None
        self._value_at_target = math.nan

    def follow(self, strategy: Strategy) -> None:
        """Evaluate what ``strategy`` would deliver from now on."""
        self._evaluation = Evaluation(strategy, self._evaluate, self._metrics, self._options.target)

    def evaluate(self, totals: Totals, epoch: int | None, seconds: float) -> tuple[dict[str, float], bool]:
        """Evaluate now: the metrics, and whether they reach the target for the first time.

        ``epoch``: None after the last one, when the strategy is drained.
        """
        values = self._evaluation.run()
        self.progress.evaluated(totals, epoch, seconds, values)
        reached = self._seconds_to_target is None and self._evaluation.target_reached()
        if reached:
            self._seconds_to_target, self._value_at_target = seconds, next(iter(values.values()))
        return values, reached

    def lose(self, dead: Sequence[int], survivors: Sequence[int], seconds: float) -> None:
        """Tell that the run goes on without ranks ``dead``."""
        self.record.lose(dead, survivors, seconds)
        names, rest = (", ".join(map(str, ranks)) for ranks in (dead, survivors))
        say(f"{LOST}rank {names} after {seconds:.1f} s; going on with {rest}")

    def conclude(self, everyone: list[Totals], interrupted: int) -> None:
        """Write the summary and the outcome."""
        last = self._evaluation.last
        summary = {name: self._judged(name, value) for name, value in last.items()} | summarize(everyone)
        if self._options.target is not None:
            summary["seconds_to_target"] = figure(self._seconds_to_target, "s", "lower")
        folder = self.record.folder
        if interrupted:
            reason = "stopped"
            self.record.finish("interrupted", summary)
            say(f"{STOPPED}{signal.Signals(interrupted).name}; --resume --name {folder.name} goes on")
        else:
            reason = "done"
            self.record.finish("done", summary)
            if lost := sum(int(rank.lost_lines) for rank in everyone):
                say(f"{ERROR}{folder}: {lost} lines of metrics could not be written; apart from that the run is done")
            else:
                tell_launcher(DONE)
        self.progress.end(f"{closing(summary, last, self._target())}  {reason}: {folder}")

    def _target(self) -> str:
        """What became of --target. The model that reached it is not the one that the run delivers."""
        if self._options.target is None or not self._evaluation.last:
            return ""
        words = f"target {self._options.target:g}"
        if self._seconds_to_target is None:
            return f"{words} not reached"
        words += f" reached after {self._seconds_to_target:.2f} s"
        at, last = self._value_at_target, next(iter(self._evaluation.last.values()))
        return words if at == last else f"{words} (then {at:.4f}; {last:.4f} after draining)"

    def _judged(self, name: str, value: float) -> dict[str, Any]:
        told = next((metric for metric in self._metrics if metric.name == name), None)
        return figure(value, told.unit, told.better) if told else figure(value, "", "")
