"""`hpcasync doctor`: from its options to a table, a JSON file and an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.table import Table
from rich.text import Text
from tyro.conf import arg

from hpcasync.arguments import parse
from hpcasync.doctor import machine
from hpcasync.doctor.cluster import cluster
from hpcasync.doctor.finding import Finding
from hpcasync.doctor.ranks import ranks
from hpcasync.doctor.software import software
from hpcasync.doctor.storage import existing, storage
from hpcasync.errors import UsageError
from hpcasync.json_file import check_replaceable, write_entries
from hpcasync.launch import LauncherName, environment
from hpcasync.report.table import console

_COLOURS = {"ok": "green", "note": "yellow", "problem": "bold red"}
_HELP = """Look at this machine, its MPI and its cluster, measure, and say what to do about what is not right.

hpcasync doctor

hpcasync doctor -n 8 --threads 4 --results /scratch/me/results --json doctor.json

In a Slurm job: salloc --nodes=2 hpcasync doctor

The exit code is 1 if there is a problem, else 0. Two ranks run for a few seconds."""


@dataclass(kw_only=True)
class DoctorArguments:
    """What the runs will be like."""

    n: Annotated[int | None, arg(aliases=["-n"], metavar="RANKS", help_behavior_hint="")] = None
    """How many ranks runs will have on this node (default: one per physical core; in a Slurm job, its tasks)."""
    threads: Annotated[int, arg(metavar="N")] = 1
    """Compute threads per rank."""
    results: Annotated[Path, arg(metavar="DIR")] = Path("results")
    """Folder in which runs will make their own."""
    launcher: Annotated[LauncherName | None, arg(help_behavior_hint="")] = None
    """What will start the ranks (default: the mpirun beside Python, or on PATH)."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the findings, with all figures, to this file, too."""


def doctor(words: Sequence[str]) -> int:
    """Print the findings; 1 if one of them is a problem."""
    arguments = parse(DoctorArguments, words, prog="hpcasync doctor", description=_HELP)
    for name, value in (("-n", arguments.n), ("--threads", arguments.threads)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}: it must be 1 or more")
    if arguments.json is not None:
        check_replaceable(arguments.json, "a doctor's findings", "verdict")
    findings = look(arguments)
    console().print(table(findings))
    if arguments.json is not None:
        write_entries(arguments.json, [finding.entry() for finding in findings])
    return int(any(finding.verdict == "problem" for finding in findings))


def look(arguments: DoctorArguments) -> list[Finding]:
    """Everything, in the order of the table."""
    groups, cores = environment.allocation(), environment.cores()
    here = arguments.n or next((-(-group.tasks // group.nodes) for group in groups), cores)
    run_directory = storage(arguments.results)
    scratch = existing(arguments.results) if run_directory[0].verdict != "problem" else None
    measured = ranks(arguments.launcher, scratch)
    library = next((str(finding.values["library"]) for finding in measured if "library" in finding.values), "")
    return [
        *software(),
        *measured,
        *cluster(library),
        machine.cores(here, arguments.threads, cores, machine.cpu_quota()),
        machine.shared_memory(),
        machine.clock(),
        *run_directory,
    ]


def table(findings: Sequence[Finding]) -> Table:
    """For rich: the verdict, what was looked at, what was found, and under it what to do."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for finding in findings:
        said = Text(finding.told)
        if finding.advice:
            said.append(f"\n→ {finding.advice}", style="bold")
        grid.add_row(Text(finding.verdict, style=_COLOURS[finding.verdict]), Text(finding.name), said)
    return grid
