"""The table of `hpcasync status`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from hpcasync.report.groups import one_line
from hpcasync.report.table import ABSENT, decimals2, percent, significant
from hpcasync.status.ranks import stragglers
from hpcasync.status.state import WORDS, State, job_id

STYLES = {
    "done": "green",
    "running": "bold cyan",
    "silent": "bold yellow",
    "cut off": "bold yellow",
    "interrupted": "yellow",
    "failed": "bold red",
}
NAMED = 3  # stragglers

_COLUMNS = (
    "run",
    "strategy",
    "state",
    "progress",
    "",
    "samples/s",
    "staleness",
    "stragglers",
    "tries",
    "Slurm",
    "last write",
)
_LEFT = ("run", "strategy", "state", "", "stragglers", "Slurm")


def terminal(states: Sequence[State]) -> Table:
    """For rich; columns that no run fills are left away."""
    lines = [_line(state) for state in states]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    kept = [i for i in range(len(_COLUMNS)) if i < 3 or any(line[i].plain not in ("", ABSENT) for line in lines)]
    for i in kept:
        name = _COLUMNS[i]
        folds = name in ("run", "strategy")
        table.add_column(name, justify="left" if name in _LEFT else "right", overflow="fold", no_wrap=not folds)
    for line in lines:
        table.add_row(*(line[i] for i in kept))
    return table


def duration(seconds: float) -> str:
    """12 s, 5 min, 3 h or 2 d."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def lagging(state: State, named: int = NAMED) -> str:
    """The dead, and who holds up the others; while nobody does, the stragglers, the slowest first."""
    paces = list(state.paces.ranks.values())
    slow = [f"{rank} ×{factor:.1f}" for rank, factor in stragglers(paces).items()]
    dead = [f"{pace.rank} died" for pace in paces if pace.died_seconds is not None]
    told = [*dead, *([state.stall.brief] if state.stall else slow)]
    more = len(told) - named
    return ", ".join(told[:named] + ([f"{more} more"] if more > 0 else []))


def figure(value: float, form: object) -> str:
    """A number in this form, or a dash."""
    assert callable(form)
    return str(form(value)) if math.isfinite(value) else ABSENT


def slurm(state: State) -> str:
    """The job and its state."""
    job = job_id(state.record)
    return f"{job} {state.slurm}".strip() if job else ""


def _line(state: State) -> list[Text]:
    idle = f"{duration(state.idle_seconds)} ago"
    metric = f"{state.metric} {state.value:.4f}" if math.isfinite(state.value) else ""
    style = STYLES[state.label]
    return [
        Text(str(state.record.folder)),
        Text(one_line(" ".join([state.record.strategy, *_options(state)]))),
        Text(WORDS[state.label], style),
        Text(figure(state.progress, percent)),
        Text(metric),
        Text(figure(state.samples_per_second, significant)),
        Text(figure(state.staleness, decimals2)),
        Text(lagging(state), "yellow"),
        Text(str(state.attempts) if state.attempts > 1 else ""),
        Text(slurm(state)),
        Text(idle, style if state.label in ("silent", "cut off") else ""),
    ]


def _options(state: State) -> list[str]:
    words = state.record.config.get("strategy")
    return [str(word) for word in words[1:]] if isinstance(words, list) else []
