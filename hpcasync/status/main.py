"""``hpcasync status``: a line per run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from hpcasync.arguments import parse
from hpcasync.errors import UsageError
from hpcasync.json_file import check_replaceable, write_entries
from hpcasync.launch.queue import job_states
from hpcasync.report.read import find_runs, read_run
from hpcasync.report.table import console
from hpcasync.status.ranks import Paces
from hpcasync.status.state import State, job_id, observe
from hpcasync.status.table import terminal

HELP = """Print a line per run: how far it is, how fast, who lags behind, and what Slurm says.

A run that says it is running and has written nothing for a minute is told by its last write: it may have been killed.
Ranks whose steps take 1.5 times as long as the median's, or more, are stragglers. When no step has been made for 10 s,
the rank that holds up the others is named instead, and where it is: in its own code, in a wait, stopped or dead.

Only the folders right below are looked at, which is where runs are made. Those of a sweep, and the published ones, lie
deeper: hpcasync status results/sweep shows them. `hpcasync report` looks two levels down."""


@dataclass(kw_only=True)
class Arguments:
    """Where the runs are."""

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="FOLDER ...")] = (Path("results"),)
    """Runs, or folders of runs: results means results/RUN, and no run that lies deeper."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write it to this file, too."""


def status(words: Sequence[str]) -> int:
    """Print the table of the runs that ``words`` name.

    Raises:
        UsageError: there is no run, or the file cannot be written.
    """
    arguments = parse(Arguments, words, prog="hpcasync status", description=HELP)
    if arguments.json is not None:
        check_replaceable(arguments.json, "what hpcasync status writes", "idle_seconds")
    states = observe_all(find_runs(arguments.paths, levels=1))
    console().print(terminal(states))
    if arguments.json is not None:
        write_entries(arguments.json, [state.entry() for state in states])
    return 0


def observe_all(folders: Sequence[Path]) -> list[State]:
    """The runs in ``folders``; one that cannot be read is named on stderr. Slurm is asked once."""
    records = []
    for folder in folders:
        try:
            records.append(read_run(folder, metrics=False))
        except UsageError as error:
            print(f"hpcasync: skipped {' '.join(str(error).split())}", file=sys.stderr)
    slurm = job_states(job_id(record) for record in records if record.status != "done")
    return [observe(record.folder, Paces(record.folder), slurm) for record in records]
