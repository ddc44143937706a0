"""``hpcasync simulate``: from its command line to rows and a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console
from rich.status import Status

from hpcasync.arguments import parse
from hpcasync.bench.rows_file import write_rows
from hpcasync.report.table import console, significant
from hpcasync.simulate.learning_rate import best_rate
from hpcasync.simulate.options import Options
from hpcasync.simulate.result import SAMPLES, grid_table, rows, table
from hpcasync.simulate.trial import Outcome, Setting, Trial

EXAMPLES = """\
hpcasync simulate --problem tridiagonal --ranks 100 --compute sqrt --strategy downpour --until 0.01
hpcasync simulate --problem logistic --ranks 16 --compute slow:0:10 --strategy eager quorum=solo --lr 0.5 --until 0.1
hpcasync simulate --problem csv --data table.csv --ranks 8 --compute exponential --strategy sync --until 0.05
hpcasync simulate --ranks 10000 --compute pareto:2 --strategy downpour --lr 0.0002 --until 0.5 --json rows.json"""
REFRESH_SECONDS = 0.2


def main(words: Sequence[str]) -> int:
    """Simulate what ``words`` ask for. 0, also where the tolerance was not reached; 130 when interrupted.

    Raises:
        UsageError: an option that cannot be used.
    """
    purpose = "Train on simulated ranks, on a virtual clock, and tell how long it takes. Seconds are virtual ones."
    options = parse(Options, words, prog="hpcasync simulate", description=f"{purpose}\n\n{EXAMPLES}")
    measured = options.resolve()
    setting = options.setting(measured)
    lr = options.rate(setting)
    screen = console()
    try:
        lr, tried = _simulate(setting, lr, screen)
    except KeyboardInterrupt:
        return 130
    law = options.compute or "constant" if measured is None else f"steps of {measured.name}"
    nodes = "" if setting.ranks_per_node is None else f" ({setting.ranks_per_node} per node)"
    case, subject = f"{options.problem}, {setting.ranks} ranks{nodes}, {law}", " ".join(options.strategy or ())
    if len(tried) > 1:
        screen.print(grid_table(tried, lr))
    screen.print(table(f"{subject}: {case}", setting, lr, tried[lr]))
    batch_size = measured.batch_size if measured is not None else None
    found = rows(case, subject, setting, lr, tried[lr], batch_size)
    if measured is not None:
        rate = next(row.value for row in found if row.metric == SAMPLES)
        screen.print(f"{significant(rate or 0.0)} samples/s with {setting.ranks} ranks, {subject}")
        kept = f"{measured.ranks} ranks, {' '.join(measured.strategy)}"
        screen.print(f"{significant(measured.samples_per_second)} samples/s measured with {kept}", highlight=False)
        if setting.choice.name != measured.strategy[0]:
            own, other = setting.choice.name, measured.strategy[0]
            screen.print(f"A step takes what it did with {other}: what {own}'s exchange costs its rank is left out")
    if options.json is not None:
        write_rows(options.json, found)
    return 0


def _simulate(setting: Setting, lr: float | None, console: Console) -> tuple[float, dict[float, Outcome]]:
    """The step size, found if not given, and what became of all that were tried."""
    progress: AbstractContextManager[Status | None] = console.status("") if console.is_terminal else nullcontext()
    with progress as status:
        if lr is not None:
            return lr, {lr: Trial(setting, lr, _Line(status, lr).tell).run()}

        def attempt(lr: float, seconds: float) -> Outcome:
            return Trial(setting.within(seconds), lr, _Line(status, lr).tell).run()

        return best_rate(attempt, setting.problem.smoothness, setting.seconds)


class _Line:
    """The line that moves in a terminal."""

    def __init__(self, status: Status | None, lr: float) -> None:
        self._status, self._lr, self._shown = status, lr, 0.0

    def tell(self, seconds: float, gap: float) -> None:
        if self._status is not None and time.monotonic() - self._shown >= REFRESH_SECONDS:
            self._shown = time.monotonic()
            self._status.update(f"step size {self._lr:.4g}: {seconds:.1f} virtual s, gap {gap:.3g}")
