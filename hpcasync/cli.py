"""The ``hpcasync`` command: a verb, its options, and one line for a mistake."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from hpcasync import __version__
from hpcasync.arguments import parse
from hpcasync.errors import UsageError, suggestion
from hpcasync.launch import (
    Binding,
    Display,
    Launcher,
    LauncherName,
    command,
    environment,
    execute,
    find_launcher,
    heterogeneous,
)
from hpcasync.launch.boxes import EXPLANATION, WARNING
from hpcasync.launch.check import check_options
from hpcasync.launch.words import check_words, split_at_job, value_of


@dataclass(kw_only=True)
class RunArguments:
    """What stands between `hpcasync run` and the job."""

    n: Annotated[int | None, arg(aliases=["-n"], metavar="RANKS", help_behavior_hint="")] = None
    """How many ranks (default: one per physical core; in a Slurm job, one per task)."""
    world: Annotated[Literal["mpi", "sim", "horovod"] | None, arg(help_behavior_hint="")] = None
    """Handed on to the job; sim needs no launcher."""
    slow: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="RANK:FACTOR")] = ()
    """Handed on: make a rank slower by a factor, e.g. 3:4."""
    jitter: Annotated[str | None, arg(metavar="LAW", help_behavior_hint="")] = None
    """Handed on: multiply the time of every step by a draw of this law."""
    kill: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="RANK:STEP")] = ()
    """Handed on: have a rank die in a step, e.g. 2:20."""
    step_seconds: Annotated[float | None, arg(metavar="S", help_behavior_hint="")] = None
    """Handed on: least duration of a step."""
    launcher: Annotated[LauncherName | None, arg(help_behavior_hint="")] = None
    """What starts the ranks (default: the mpirun beside Python, or on PATH); srun-pmix and srun-pmi2 are Slurm's."""
    binding: Binding = "auto"
    """Bind every rank to a core of its own, or none; auto: if they all fit."""
    dry_run: Annotated[bool, FlagCreatePairsOff] = False
    """Print the command instead of running it."""

    def handed_on(self) -> list[str]:
        """The options that are the job's."""
        words = [word for slow in self.slow for word in ("--slow", slow)]
        words += [word for kill in self.kill for word in ("--kill", kill)]
        for name, value in (("--world", self.world), ("--jitter", self.jitter), ("--step-seconds", self.step_seconds)):
            words += [name, str(value)] if value is not None else []
        return words


@dataclass(kw_only=True)
class ReportArguments:
    """Where the runs are, and where the page goes."""

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="FOLDER ...")] = (Path("results"),)
    """Folders of runs, or folders of such folders."""
    output: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The page to write (default: report.html in the first folder)."""
    figures: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Where the page's plots go as SVG files too."""


CROWDED = 2  # ranks per CPU that pass without a warning: trying things out on a small machine
_RUN_HELP = """Start a job's ranks under the MPI launcher: hpcasync run [options] JOB.py [job options].

hpcasync run JOB.py --help shows the job's own options.

When a rank dies, the others go on (Open MPI). Under MPICH, or a plain mpirun without --with-ft ulfm, the launcher ends
them all. The exit code is 0 if the run is done, whoever was lost on the way."""


def run(words: Sequence[str]) -> int:
    """Start a job's ranks under the MPI launcher and return its exit code."""
    before, job, job_words = split_at_job(words)
    arguments = parse(RunArguments, before, prog="hpcasync run", description=_RUN_HELP)
    if job is None:
        raise UsageError("run: no job file; it ends in .py: hpcasync run -n 4 jobs/image_classification.py")
    if arguments.n is not None and arguments.n < 1:
        raise UsageError(f"-n {arguments.n}: it must be 1 or more")
    if not Path(job).is_file():
        raise UsageError(f"{job}: there is no such job file")
    program = [sys.executable, job, *arguments.handed_on(), *job_words]
    if value_of(program, "--world") == "sim":
        return _run_directly(program + (["--ranks", str(arguments.n)] if arguments.n else []), arguments.dry_run)
    if {"-h", "--help"} & set(job_words):
        return _run_directly(program, arguments.dry_run)
    check_words(job_words)
    launcher = find_launcher(name=arguments.launcher)
    argv = _launch_command(launcher, program, arguments)
    if arguments.dry_run:
        print(shlex.join(argv))
        return 0
    if (checked := check_options(program)).code:
        sys.stderr.write(checked.told)
        return checked.code
    display = Display(_ranks(arguments), Path(job).name, _observe)
    return execute(argv, display, survivable=launcher.family == "Open MPI")


def submit(words: Sequence[str]) -> int:
    """Hand a job to Slurm, in a batch script that checkpoints, requeues and resumes."""
    from hpcasync.launch.slurm.submit import submit as submitting

    return submitting(words)


def doctor(words: Sequence[str]) -> int:
    """Look at this machine, its MPI and its cluster, measure, and say what to do about what is not right."""
    from hpcasync.doctor.main import doctor as looking  # PyTorch takes a second to import

    return looking(words)


def report(words: Sequence[str]) -> int:
    """Print a table of the runs and write a page about them."""
    from hpcasync.report.main import report as write_report  # the plots' libraries take a second to import

    arguments = parse(ReportArguments, words, prog="hpcasync report", description=report.__doc__ or "")
    print(f"page: {write_report(arguments.paths, arguments.output, arguments.figures)}")
    return 0


def sweep(words: Sequence[str]) -> int:
    """Search for the best options of a job, by any number of workers side by side."""
    from hpcasync.sweep.main import main as sweeping  # PyTorch takes a second to import

    return sweeping(words)


def status(words: Sequence[str]) -> int:
    """Print a line per run: how far it is, how fast, who lags behind, and what Slurm says."""
    from hpcasync.status.main import status as telling

    return telling(words)


def watch(words: Sequence[str]) -> int:
    """Show one run while it goes on: progress, loss, and every rank's rate, staleness and waiting."""
    from hpcasync.status.watch import watch as watching

    return watching(words)


def bench(words: Sequence[str]) -> int:
    """Measure strategies and verbs, beside Horovod and DDP if wanted, and leave table, plot and raw data behind."""
    from hpcasync.bench.main import bench as measure  # PyTorch takes a second to import

    return measure(words)


def simulate(words: Sequence[str]) -> int:
    """Train on any number of simulated ranks, on a virtual clock, and tell how long it takes."""
    from hpcasync.simulate.main import main as simulating  # PyTorch takes a second to import

    return simulating(words)


def strategies(words: Sequence[str]) -> int:
    """What every strategy does and takes, and which one fits which disease."""
    from hpcasync.guide import strategies as telling  # PyTorch takes a second to import

    return telling(words)


def compare(words: Sequence[str]) -> int:
    """Simulate every strategy under the same disturbances: time to one loss, as a table and a plot."""
    from hpcasync.simulate.compare import compare as comparing  # PyTorch takes a second to import

    return comparing(words)


def replay(words: Sequence[str]) -> int:
    """Repeat a run that was made with --trace, on simulated ranks and the same way every time."""
    from hpcasync.simulate.replay import replay as repeat

    return repeat(words)


def _launch_command(launcher: Launcher, program: Sequence[str], arguments: RunArguments) -> list[str]:
    cores, groups = environment.cores(), environment.allocation()
    if arguments.n is not None and len(groups) > 1:
        raise UsageError(f"-n {arguments.n}: in a heterogeneous job the groups' tasks are the ranks")
    ranks = _ranks(arguments)
    cpus = len(os.sched_getaffinity(0))
    if not groups and ranks > CROWDED * cpus:
        said = f"{ranks} ranks share {cpus} CPU{'s' * (cpus > 1)}: they start and run slowly, and timings mean little"
        print(f"{WARNING}{said}", file=sys.stderr, flush=True)
    variables = {environment.RANKS: str(ranks)}
    if len(groups) > 1:
        return heterogeneous(launcher, program, groups, variables, arguments.binding)
    threads = value_of(program, "--threads")
    if threads is None and groups:
        threads = str(groups[0].cpus_per_task)
        program = [*program[:2], "--threads", threads, *program[2:]]
    return command(
        launcher,
        program,
        ranks=ranks,
        threads=int(threads) if threads and threads.isdigit() else 1,  # the job itself refuses what is no number
        cores=cores,
        root=os.geteuid() == 0,
        environment=variables,
        survivable=True,
        nodes=groups[0].nodes if groups else None,
        binding=arguments.binding,
    )


def _ranks(arguments: RunArguments) -> int:
    return arguments.n or sum(group.tasks for group in environment.allocation()) or environment.cores()


def _observe(folder: Path) -> Callable[[], str]:
    """What says how the run in ``folder`` is getting on, nothing before its first step; Slurm is not asked."""
    from hpcasync.status.ranks import Paces
    from hpcasync.status.screen import figures
    from hpcasync.status.state import observe

    paces = Paces(folder)

    def look() -> str:
        state = observe(folder, paces, {})
        return f"{state.record.strategy}  {figures(state)}" if state.steps else ""

    return look


def _run_directly(program: list[str], dry_run: bool) -> int:
    if dry_run:
        print(shlex.join(program))
        return 0
    sys.stdout.flush()
    return os.execv(program[0], program)  # never returns


@dataclass(frozen=True)
class Verb:
    """A verb of the command, and an example of its use."""

    run: Callable[[Sequence[str]], int]
    example: str


VERBS = {
    "run": Verb(run, "hpcasync run -n 4 --slow 3:4 jobs/image_classification.py --strategy downpour pull=4 bound=8"),
    "submit": Verb(
        submit, "hpcasync submit --nodes 4 --tasks 32 jobs/image_classification.py --strategy eager bound=8"
    ),
    "doctor": Verb(doctor, "hpcasync doctor -n 4 --json doctor.json"),
    "report": Verb(report, "hpcasync report results/ --output report.html"),
    "strategies": Verb(strategies, "hpcasync strategies ringmaster"),
    "status": Verb(status, "hpcasync status results/"),
    "watch": Verb(watch, "hpcasync watch results/image_classification-downpour-20260101-120000"),
    "sweep": Verb(sweep, "hpcasync sweep -n 4 lr.toml jobs/image_classification.py --target 0.97 --seconds 60"),
    "simulate": Verb(simulate, "hpcasync simulate --ranks 100 --compute sqrt --strategy downpour --until 0.01"),
    "compare": Verb(compare, "hpcasync compare --only sync backup ringmaster"),
    "replay": Verb(replay, "hpcasync replay results/image_classification-downpour-20260101-120000"),
    "bench": Verb(bench, "hpcasync bench straggler --ranks 4 --peers horovod,ddp"),
}


def usage() -> str:
    """What ``hpcasync --help`` prints."""
    lines = ["usage: hpcasync VERB ...", "", "Asynchronous neural-network training on MPI clusters.", ""]
    width = max(map(len, VERBS)) + 2
    for name, verb in VERBS.items():
        lines += [f"  {name:{width}}{(verb.run.__doc__ or '').splitlines()[0]}", f"{'':{width + 2}}{verb.example}", ""]
    return "\n".join([*lines, "hpcasync VERB --help shows a verb's options."])


def main() -> None:
    """Entry point of ``hpcasync``; exits 0, 2 after a mistake of the user, or with the job's exit code."""
    words = sys.argv[1:]
    try:
        if not words or words[0] in ("-h", "--help"):
            print(usage())
            sys.exit(0 if words else 2)
        if words[0] == "--version":
            print(f"hpcasync {__version__}")
            sys.exit(0)
        if words[0] not in VERBS:
            told = suggestion(words[0], VERBS, f"the verbs are {', '.join(VERBS)}")
            raise UsageError(f"unknown verb {words[0]!r}; {told}")
        sys.exit(VERBS[words[0]].run(words[1:]))
    except UsageError as error:
        print(f"{EXPLANATION}error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
