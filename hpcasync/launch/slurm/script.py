"""The batch script of a job, as a pure function."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hpcasync
from hpcasync.launch.slurm.request import Request
from hpcasync.launch.slurm.site import Site
from hpcasync.launch.words import command_line, quoted

PACKAGE = Path(hpcasync.__file__).resolve().parent


@dataclass(frozen=True)
class Submission:
    """A job, and where and how its run is made.

    Attributes:
        program: the job's file and its options.
        results: folder of the runs' folders.
        name: of the run's folder; None: after the job file and the job's id.
        attempts: how often the job may be started at most.
        python: the interpreter of the ranks.
        command: what has made the script, for its reader.
    """

    program: Sequence[str]
    results: Path
    name: str | None
    attempts: int
    python: str
    command: Sequence[str]


def flags(request: Request, site: Site) -> list[str]:
    """The options that sbatch finds in the script."""
    fixed = [f"--output={output(request)}", "--open-mode=append", f"--signal=B:USR1@{request.signal_seconds}"]
    return [*request.directives(), *fixed, *site.sbatch_flags]


def output(request: Request) -> str:
    """sbatch's pattern of the file that the job's output goes to, in the folder where it is submitted.

    Without %x where there is a name: SBATCH_JOB_NAME would change it.
    """
    return f"{request.job_name or '%x'}-{'%A_%a' if request.array else '%j'}.out"


def file_name(job: str) -> str:
    """The job file's name, as far as Slurm's queue and a folder can show it."""
    return re.sub(r"[^A-Za-z0-9_.@+-]", "_", Path(job).stem, flags=re.ASCII).lstrip("-.@+") or "job"


def script(request: Request, site: Site, submission: Submission) -> str:
    """A script for sbatch; every line of it that holds a value is made of words that :mod:`words` has quoted.

    Index i of an array is a run of its own, with --seed i.
    """
    variables = {
        "HPCASYNC_HOME": str(PACKAGE.parent),
        "HPCASYNC_PYTHON": submission.python,
        "HPCASYNC_LAUNCHER": site.launcher,
        "HPCASYNC_BINDING": site.binding,
        "HPCASYNC_RESULTS": str(submission.results),
        "HPCASYNC_NAME": submission.name or "",
        "HPCASYNC_ATTEMPTS": str(submission.attempts),
    }
    job = file_name(submission.program[0])
    seed = ' --seed "$SLURM_ARRAY_TASK_ID"' if request.array else ""
    lines = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH {flag}" for flag in flags(request, site)),
        f"# Written by: {command_line(submission.command)}",
        "set -Eeuo pipefail",
        *(f"{name}={quoted(value)}" for name, value in variables.items()),
        f". {quoted(str(PACKAGE / 'launch' / 'batch.sh'))}",
        *_site(site),
        "batch_begin",
        f'batch_run "$(batch_name {quoted(job)})" {command_line(submission.program)}{seed} || true',
        "batch_end",
    ]
    return "\n".join(lines) + "\n"


def _site(site: Site) -> list[str]:
    """batch.sh calls batch_site; these lines replace the one that sources a file."""
    if not site.modules and not site.prologue:
        return []
    loads = [f"  module load {quoted(name)} || batch_fail {quoted(f'no module {name}')}" for name in site.modules]
    lines = [f"  {line}" for line in site.prologue]
    return ["batch_site() {", "  set +Eeu # the site's lines are not ours", *loads, *lines, "  set -Eeu", "}"]
