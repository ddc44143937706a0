"""What rank 0 tells the user: a line per evaluation, and on a terminal of its own one line that moves."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any

from hpcasync.launch import environment
from hpcasync.launch.moving_line import MovingLine, can_move
from hpcasync.run.metrics import Totals
from hpcasync.run.say import show

REFRESH_SECONDS = 0.2


class Progress:
    """Shows a run's progress. Under a launcher `hpcasync run` draws the line that moves: a launcher holds back output
    that is no whole line, and gives ranks a terminal whatever its own output is."""

    def __init__(self, title: str) -> None:
        self._title = title
        alone = environment.launched_by() is None
        self._line = MovingLine(sys.stdout) if alone and can_move(sys.stdout) else None
        self._shown = 0.0
        self._evaluation = ""

    def step(self, totals: Totals, epoch: int, seconds: float, loss: float) -> None:
        """After every step: redraw the moving line when it is due."""
        if self._line is None or time.monotonic() - self._shown < REFRESH_SECONDS:
            return
        self._shown = time.monotonic()
        rate = f"{totals.samples / seconds:.0f} samples/s on rank 0"
        where = _where(totals, epoch, seconds)
        with suppress(OSError):  # the terminal was closed
            self._line.draw(f"{self._title}  {where}  {rate}  loss {loss:.4g}  {self._evaluation}")

    def evaluated(self, totals: Totals, epoch: int | None, seconds: float, evaluation: dict[str, float]) -> None:
        """After every evaluation. ``epoch``: None for that of the drained strategy, after the last epoch."""
        self._evaluation = "  ".join(f"{name} {value:.4f}" for name, value in evaluation.items())
        if self._line is None:
            show(f"{self._title}  {_where(totals, epoch, seconds)}  {self._evaluation}", sys.stdout)

    def end(self, line: str) -> None:
        """The run is over: ``line`` stays on the screen."""
        self.close()
        show(line, sys.stdout)

    def close(self) -> None:
        """Give the terminal back."""
        if self._line is not None:
            with suppress(OSError):
                self._line.erase()
            self._line = None


def _where(totals: Totals, epoch: int | None, seconds: float) -> str:
    staleness = totals.staleness_sum / max(totals.staleness_count, 1)
    name = "drained" if epoch is None else f"epoch {epoch + 1}"
    return f"{name}  step {totals.steps}  {seconds:.1f} s  staleness {staleness:.1f}"


def closing(summary: dict[str, dict[str, Any]], evaluated: dict[str, float], target: str) -> str:
    """The figures that a run ends with, on one line: its last evaluation, what became of the target, the rest."""
    figures = {name: entry["value"] for name, entry in summary.items()}
    words = [*(f"{name} {value:.4f}" for name, value in evaluated.items()), *([target] if target else [])]
    words.append(f"{figures['samples_per_second']:.0f} samples/s")
    if figures["ideal_share"] is not None:
        words.append(f"{figures['ideal_share']:.2f} of the ideal")
    words.append(f"staleness {figures['staleness_mean']:.1f}, at most {figures['staleness_max']}")
    if figures["non_finite"]:
        words.append(f"gradients left out, not finite: {figures['non_finite']}")
    return "  ".join(words)
