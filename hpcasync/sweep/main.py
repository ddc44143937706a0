"""``hpcasync sweep``: one worker of a sweep, from its command line to its exit code."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from hpcasync.arguments import parse
from hpcasync.errors import UsageError
from hpcasync.launch import Binding, LauncherName
from hpcasync.launch.words import check_words, split_at_job, value_of
from hpcasync.report.table import console
from hpcasync.sweep.space import Space, read_space

HELP = """Search for the best options of a job: hpcasync sweep [options] SWEEP.toml JOB.py [job options].

Each trial is `hpcasync run` of JOB.py with the job options given here and those that SWEEP.toml searches. The same
command once more, elsewhere at the same time or later, is another worker of the same sweep: it goes on with the trials
that are left. With --target among the job options the seconds to the target count, else the job's metric at the end.

    trials = 40                              without it: every combination of the lists
    [search]
    lr = { low = 0.01, high = 1.0, log = true, sync = 0.2 }
    batch_size = [16, 32, 64]
    [strategy.downpour]                      a table per strategy to try
    bound = { low = 1, high = 16 }
    [strategy.eager]"""
_OWN = ("--name", "--results", "--resume", "--replay")


@dataclass(kw_only=True)
class Arguments:
    """What stands between `hpcasync sweep` and SWEEP.toml."""

    n: Annotated[int | None, arg(aliases=["-n"], metavar="RANKS", help_behavior_hint="")] = None
    """How many ranks each trial has (default: as `hpcasync run`)."""
    launcher: Annotated[LauncherName | None, arg(help_behavior_hint="")] = None
    """What starts the ranks (default: as `hpcasync run`)."""
    binding: Binding = "auto"
    """As for `hpcasync run`."""
    results: Annotated[Path, arg(metavar="DIR")] = Path("results")
    """Folder in which the sweep's own folder is made."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Name of the sweep's folder; default: that of SWEEP.toml."""


def main(command: Sequence[str]) -> int:
    """Run trials until none is left. 0; 1 if one has failed; 85 or 128 + the signal that stopped this worker.

    Raises:
        UsageError: an option or a file that cannot be used; or the job has refused its options in every trial so far.
    """
    before, job, options = split_at_job(command)
    file = Path(before[-1]) if before and before[-1].endswith(".toml") else None
    arguments = parse(Arguments, before[: -1 if file else None], prog="hpcasync sweep", description=HELP)
    if job is None:
        raise UsageError("sweep: no job file; it ends in .py: hpcasync sweep sweep.toml jobs/image_classification.py")
    if not Path(job).is_file():
        raise UsageError(f"{job}: there is no such job file")
    if file is None:
        raise UsageError(f"sweep: no file of what is searched; it ends in .toml: hpcasync sweep sweep.toml {job}")
    if arguments.n is not None and arguments.n < 1:
        raise UsageError(f"-n {arguments.n}: it must be 1 or more")
    name = arguments.name if arguments.name is not None else file.stem
    if name in ("", ".", "..") or "/" in name:
        raise UsageError(f"--name {name}: it must be a folder's name without a slash")
    space = read_space(file)
    _check_options(space, options)
    _require_optuna()
    from hpcasync.sweep.trial import Signals
    from hpcasync.sweep.worker import Worker

    launch = ["--binding", arguments.binding]
    launch += ["--launcher", arguments.launcher] if arguments.launcher is not None else []
    worker = Worker(arguments.results / name, space, job, options, arguments.n, launch)
    with Signals().listening() as signals:
        code = worker.work(signals)
    worker.show(console())
    return code


def _check_options(space: Space, options: Sequence[str]) -> None:
    """Raises UsageError for a word that no launcher takes, or an option of the job that is the sweep's to give."""
    check_words(options)
    for name in _OWN:
        if value_of(options, name) is not None or name in options:
            hint = f"; give {name} before the file" if name in ("--name", "--results") else ""
            raise UsageError(f"{name}: the sweep names its runs{hint}")
    searched = [f"--{name.replace('_', '-')}" for name in space.options] + ["--strategy"] * bool(space.strategies)
    for name in searched:
        if value_of(options, name) is not None:
            raise UsageError(f"{name} is searched; take it off the job's options, or out of the file")


def _require_optuna() -> None:
    if importlib.util.find_spec("optuna") is None:
        raise UsageError("hpcasync sweep needs Optuna: pip install optuna")
