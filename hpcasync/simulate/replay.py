"""``hpcasync replay``: repeat a traced run on simulated ranks, the same way every time, and say how alike it came out.

What is the same: the job, its data and seeds, how many steps each rank makes, and the order in which the ranks hand in
their contributions: a simulated rank hands in at the moment at which the real one did. What is not: there, a step's
exchange took time, in which others' exchanges could begin; here it takes none. So the replay of a run whose exchanges
never overlapped is exact up to rounding, and of others it is a run that could have been. The figures say which.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from hpcasync.arguments import parse
from hpcasync.errors import UsageError
from hpcasync.report.read import RunRecord, find_runs, read_run
from hpcasync.report.table import percent
from hpcasync.run.trace import read_traces


@dataclass(kw_only=True)
class Options:
    """What is replayed."""

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """The folder of a run that was made with --trace."""


def replay(words: Sequence[str]) -> int:
    """Replay the run that ``words`` name. The job's exit code.

    Raises:
        UsageError: a run that was not traced, that lost a rank, that was resumed, or whose job is not where it was.
    """
    example = "hpcasync replay results/image_classification-downpour-20260101-120000"
    options = parse(Options, words, prog="hpcasync replay", description=f"{__doc__}\n{example}")
    recorded = read_run(options.folder)
    traces = read_traces(options.folder)
    if recorded.document.get("failures"):
        raise UsageError(f"{options.folder}: the run lost a rank; only one that kept all can be replayed")
    if len(traces) != recorded.size:
        raise UsageError(f"{options.folder}: traces of {len(traces)} ranks where there were {recorded.size}")
    attempts = len(recorded.document.get("attempts", ()))
    if attempts > 1:
        raise UsageError(f"{options.folder}: the run was made in {attempts} attempts; only one attempt can be replayed")
    job, *job_words = _argv(recorded)
    before = set(_replays(options.folder))
    code = subprocess.run([sys.executable, job, *job_words, "--replay", str(options.folder)], check=False).returncode
    made = sorted(set(_replays(options.folder)) - before)
    if code == 0 and made:
        Console().print(compare(recorded, read_run(made[-1])))
        print(f"replay: {made[-1]}")
    return code


def _argv(recorded: RunRecord) -> list[str]:
    argv = recorded.document.get("argv")
    if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
        raise UsageError(f"{recorded.folder}: its run.json does not say how the job was called")
    if not Path(argv[0]).is_file():
        raise UsageError(f"{argv[0]}: the job is not there; replay from the folder in which the run was started")
    return argv


def _replays(folder: Path) -> list[Path]:
    inside = folder / "replays"
    return find_runs([inside]) if inside.is_dir() else []


def compare(recorded: RunRecord, replayed: RunRecord) -> Table:
    """How far the two agree, step by step and at the end."""
    table = Table(box=None, show_header=False, pad_edge=False)
    staleness, losses = (_columns(recorded, replayed, name) for name in ("staleness", "loss"))
    same = np.mean(staleness[0] == staleness[1]) if staleness.size else 1.0
    table.add_row("steps", f"{staleness.shape[1]:,}")
    table.add_row("with the recorded staleness", percent(float(same)))
    apart = np.abs(losses[0] - losses[1])
    table.add_row("loss of a step, difference", f"{np.median(apart):.3g} in the median, {apart.max():.3g} at most")
    for name, here in (replayed.evaluations[-1].values if replayed.evaluations else {}).items():
        there = recorded.evaluations[-1].values.get(name, math.nan) if recorded.evaluations else math.nan
        table.add_row(f"{name} at the end", f"{there:.6g} then, {here:.6g} now")
    return table


def _columns(recorded: RunRecord, replayed: RunRecord, name: str) -> NDArray[np.float64]:
    """(2, steps) one figure of every step that both have made, rank after rank."""
    pairs = []
    for there, here in zip(recorded.ranks, replayed.ranks, strict=True):
        count = min(len(there.columns[name]), len(here.columns[name]))
        pairs.append(np.stack([there.columns[name][:count], here.columns[name][:count]]))
    return np.concatenate(pairs, axis=1)
