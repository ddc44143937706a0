"""What rank 0 tells the user: one line that moves in a terminal, a line per evaluation elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hpcasync.run.metrics import Totals

REFRESH_SECONDS = 0.2


class Progress:
    """Shows a run's progress. ``terminal``: standard output ends in one."""

    def __init__(self, title: str, terminal: bool) -> None:
        self._title = title
        self._live: Live | None = None
        self._shown = 0.0
        self._evaluation = ""
        if terminal:
            console = Console(force_terminal=True)
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()

    def step(self, totals: Totals, epoch: int, seconds: float, loss: float) -> None:
        """After every step: redraw the moving line when it is due."""
        if self._live is None or time.monotonic() - self._shown < REFRESH_SECONDS:
            return
        self._shown = time.monotonic()
        rate = f"{totals.samples / seconds:.0f} samples/s on rank 0"
        line = f"{self._title}  {_where(totals, epoch, seconds)}  {rate}  loss {loss:.4g}  {self._evaluation}"
        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)

    def evaluated(self, totals: Totals, epoch: int | None, seconds: float, evaluation: dict[str, float]) -> None:
        """After every evaluation. ``epoch``: None for that of the drained strategy, after the last epoch."""
        self._evaluation = "  ".join(f"{name} {value:.4f}" for name, value in evaluation.items())
        if self._live is None:
            print(f"{self._title}  {_where(totals, epoch, seconds)}  {self._evaluation}", flush=True)

    def end(self, line: str) -> None:
        """The run is over: ``line`` stays on the screen."""
        self.close()
        print(line, flush=True)

    def close(self) -> None:
        """Give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None


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
    return "  ".join(words)
