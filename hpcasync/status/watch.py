"""``hpcasync watch``: one run while it goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.live import Live
from tyro.conf import Positional, arg

from hpcasync.arguments import parse
from hpcasync.errors import UsageError
from hpcasync.launch.queue import job_states
from hpcasync.report.read import read_run
from hpcasync.status.ranks import Paces
from hpcasync.status.screen import line, screen
from hpcasync.status.state import State, job_id, observe

SLURM_SECONDS = 30.0  # between two questions: a controller serves thousands of users
HELP = """Show one run while it goes on: progress, loss, accuracy, and every rank's rate, staleness and waiting.

It reads what the run writes, so it shows runs on any node and under any launcher. It ends when the run does; its exit
code is 0 for a run that is done and 1 for one that has failed or was stopped. Where standard output is no terminal, it
prints a line each time."""


@dataclass(kw_only=True)
class Arguments:
    """Which run, and how often."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN", help_behavior_hint="")] = ()
    """The run's folder."""
    every: Annotated[float, arg(metavar="SECONDS")] = 1.0
    """Seconds between two looks."""


def watch(words: Sequence[str]) -> int:
    """Show the run that ``words`` name until it ends. 0 if it is done, 1 if not, 130 when interrupted.

    Raises:
        UsageError: there is no such run.
    """
    arguments = parse(Arguments, words, prog="hpcasync watch", description=HELP)
    if not arguments.every > 0:
        raise UsageError(f"--every {arguments.every}: it must be a positive number")
    if len(arguments.runs) != 1:
        raise UsageError(f"watch shows one run, not {len(arguments.runs)}: hpcasync watch results/RUN")
    folder = arguments.runs[0]
    if not (folder / "run.json").exists():
        raise UsageError(f"{folder}: no run.json there; hpcasync status lists the runs in results/")
    look = Looks(folder)
    try:
        if sys.stdout.isatty():
            return _live(look, arguments.every, Console())
        return _plain(look, arguments.every)
    except KeyboardInterrupt:
        return 130


class Looks:
    """Looks at one run, again and again."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._paces = folder, Paces(folder)
        self._slurm: dict[str, str] = {}
        self._asked = -SLURM_SECONDS

    def __call__(self) -> State:
        """How it is now. Slurm is asked now and then."""
        job = job_id(read_run(self._folder, metrics=False))
        if job and time.monotonic() - self._asked >= SLURM_SECONDS:
            self._slurm, self._asked = job_states([job]), time.monotonic()
        return observe(self._folder, self._paces, self._slurm)


def _plain(look: Callable[[], State], every_seconds: float) -> int:
    while True:
        state = look()
        print(line(state), flush=True)
        if not state.is_open:
            return _code(state)
        time.sleep(every_seconds)


def _live(look: Callable[[], State], every_seconds: float, console: Console) -> int:
    state = look()
    with Live(screen(state, console.width, console.height), console=console, auto_refresh=False) as live:
        while state.is_open:
            time.sleep(every_seconds)
            state = look()
            live.update(screen(state, console.width, console.height), refresh=True)
    return _code(state)


def _code(state: State) -> int:
    return 0 if state.label == "done" else 1
