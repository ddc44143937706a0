"""`hpcasync submit`: hand a job to Slurm."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from hpcasync.arguments import parse
from hpcasync.errors import UsageError
from hpcasync.launch.boxes import EXPLANATION
from hpcasync.launch.check import REFUSED, check_options
from hpcasync.launch.slurm import overrides
from hpcasync.launch.slurm.request import NAME, Request
from hpcasync.launch.slurm.script import Submission, file_name, flags, output, script
from hpcasync.launch.slurm.site import Site, read_site
from hpcasync.launch.words import check_words, command_line, split_at_job, value_of

_SBATCH_SECONDS = 120.0  # slurmctld may be busy
# Options of the job's that are this verb's.
_OWN = {
    "--name": "`hpcasync submit --name` says what the run's folder is called",
    "--results": "`hpcasync submit --results` says where the run's folder is made",
    "--resume": "a submitted run always goes on where it was",
    "-h": "`hpcasync run JOB.py --help` shows the job's own options",
    "--help": "`hpcasync run JOB.py --help` shows the job's own options",
    "--seed": "in an array, the index is the seed",
}

_HELP = """Hand a job to Slurm: hpcasync submit [options] JOB.py [job options].

hpcasync submit --nodes 4 --tasks 32 --time 2:00:00 jobs/image_classification.py --strategy eager bound=8

hpcasync submit --site cluster.toml --array 0-9%4 --dry-run jobs/image_classification.py --strategy stale

The job starts again, where it was, after a preemption or at its time limit. Index i of an array is a run of its own,
with --seed i."""


@dataclass(kw_only=True)
class SubmitArguments(Request):
    """What stands between `hpcasync submit` and the job."""

    site: Annotated[Path | None, arg(metavar="FILE.toml", help_behavior_hint="")] = None
    """What is particular to the cluster: launcher, modules, prologue, sbatch_flags, binding, defaults."""
    results: Annotated[Path, arg(metavar="DIR")] = Path("results")
    """Folder in which the run's own folder is made."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Name of the run's folder; that of an earlier run to go on with it. Default: the job file's and the job's id."""
    attempts: Annotated[int, arg(metavar="N")] = 20
    """How often the job may be started at most, requeues included."""
    dry_run: Annotated[bool, FlagCreatePairsOff] = False
    """Print the script and the command instead of submitting."""
    test_only: Annotated[bool, FlagCreatePairsOff] = False
    """Have sbatch check the script and say when the job would start."""


def submit(words: Sequence[str]) -> int:
    """Hand a job to Slurm, in a batch script that checkpoints, requeues and resumes."""
    before, job, job_words = split_at_job(words)
    arguments, site = _parse(before)
    if job is None:
        raise UsageError("submit: no job file; it ends in .py: hpcasync submit --tasks 4 jobs/image_classification.py")
    if not Path(job).is_file():
        raise UsageError(f"{job!r}: there is no such job file")
    arguments.job_name = arguments.job_name or file_name(job)
    _check(arguments, job, job_words)
    submission = Submission(
        program=[job, *job_words],
        results=arguments.results,
        name=arguments.name,
        attempts=arguments.attempts if arguments.requeue else 1,
        python=sys.executable,
        command=["hpcasync", "submit", *words],
    )
    text = script(arguments, site, submission)
    for line in overrides.told(overrides.sbatch_variables(), flags(arguments, site)):
        print(f"{EXPLANATION}note: {line}", file=sys.stderr)
    argv = ["sbatch", "--test-only" if arguments.test_only else "--parsable"]
    if arguments.dry_run:
        print(f"{text}\n{command_line(argv)}   # with this script on its standard input")
        return 0
    # What fails otherwise may be for want of the modules that the site's script loads: only a refusal counts.
    if (checked := check_options([sys.executable, job, *job_words])).code == REFUSED:
        sys.stderr.write(checked.told)
        return REFUSED
    told = _sbatch(argv, text)
    if told.stderr.strip():  # the answer to --test-only, or a warning
        print(told.stderr.strip(), file=sys.stdout if arguments.test_only else sys.stderr)
    if not arguments.test_only:
        _tell(arguments, told.stdout.strip().rpartition("\n")[2].partition(";")[0], file_name(job))
    return 0


def _tell(arguments: SubmitArguments, job: str, file: str) -> None:
    """The job's id, and where its output and its run will be."""
    path = re.sub("%[jA]", job, output(arguments)).replace("%a", "<index>")
    print(f"job {job}")
    print(f"output: {Path.cwd() / path}")
    folder = arguments.name or f"{file}-{job}{'_<index>' if arguments.array else ''}"
    print(f"run: {Path.cwd() / arguments.results / folder}")


def _check(arguments: SubmitArguments, job: str, job_words: Sequence[str]) -> None:
    """Raises UsageError for what would only be found out when the job runs, or would not be what it seems."""
    arguments.check()
    if arguments.tasks is None:
        raise UsageError("--tasks: how many ranks on every node? Say it, or put tasks into the site file's defaults")
    if arguments.attempts < 1:
        raise UsageError(f"--attempts {arguments.attempts}: it must be 1 or more")
    if arguments.name is not None and not re.fullmatch(NAME, arguments.name):
        raise UsageError(f"--name {arguments.name!r}: it must be letters, digits and _ . @ + -")
    if arguments.name is not None and arguments.array is not None:
        raise UsageError(f"--name {arguments.name}: an array makes a run per index, each with a name of its own")
    for path in (job, str(arguments.results)):
        if path.startswith("-"):
            raise UsageError(f"{path!r}: it looks like an option; write ./{path}")
    check_words(job_words)
    for word in job_words:
        name = word.partition("=")[0]
        if name in _OWN and (name != "--seed" or arguments.array):
            raise UsageError(f"{word!r} after the job: {_OWN[name]}")


def _parse(words: Sequence[str]) -> tuple[SubmitArguments, Site]:
    """The options, in front of which stand the site's defaults."""
    path = value_of(words, "--site")
    site = read_site(Path(path)) if path is not None else Site()
    return parse(SubmitArguments, [*site.defaults, *words], prog="hpcasync submit", description=_HELP), site


def _sbatch(argv: Sequence[str], text: str) -> subprocess.CompletedProcess[str]:
    """Raises UsageError when there is no sbatch, when it does not answer, and with its own words when it refuses."""
    path = shutil.which(argv[0])
    if path is None:
        raise UsageError("no sbatch found: submit from a machine that has Slurm's commands, or look with --dry-run")
    try:
        told = subprocess.run(
            [path, *argv[1:]],
            input=text,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SBATCH_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{path} does not answer: {error}") from None
    if told.returncode:
        lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in told.stderr.splitlines()]
        raise UsageError(f"sbatch: {'; '.join(filter(None, lines)) or f'exit code {told.returncode}'}")
    return told
