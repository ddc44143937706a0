"""From a job's command line to its exit code."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeVar

from hpcasync.arguments import parse
from hpcasync.errors import RunFailure, UsageError
from hpcasync.launch import environment
from hpcasync.launch.boxes import DONE, EXPLANATION, UP
from hpcasync.run.gather import first_failure
from hpcasync.run.options import Options
from hpcasync.run.provenance import Origin
from hpcasync.run.record import mark_failed
from hpcasync.run.recovery import recover
from hpcasync.run.run import AlreadyDone, PeerFailed, Run
from hpcasync.run.say import tell_launcher
from hpcasync.run.stop import Signals
from hpcasync.run.worlds import KINDS, Kind
from hpcasync.world import RankFailed, World

Job = TypeVar("Job", bound=Options)

GRACE_SECONDS = 10.0  # for the rank that speaks to end the others, before a silent one ends itself


def main(train: Callable[[Run, Job], None], job: type[Job], argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``train(run, options)`` on this rank, or on every simulated one, and exit.

    Exit codes: 0; 1 after an exception, whose traceback is printed once; 2 for the user's mistake, told on one line;
    128 + the signal that ended the run early.

    Args:
        job: a dataclass that inherits from Options; its fields are the command-line options.
        argv: the options; the process's own unless given.
    """
    tell_launcher(UP)
    words = sys.argv[1:] if argv is None else list(argv)
    path = Path(train.__code__.co_filename)
    try:
        options = parse(job, words, prog=path.name, description=sys.modules[train.__module__].__doc__ or "")
        options.resolve()
        if environment.only_checks():
            sys.exit(0)
        sys.exit(_enter(train, options, path, [sys.argv[0], *words]))
    except UsageError as error:
        _refuse(error)


def _enter(train: Callable[[Run, Job], None], options: Job, path: Path, argv: Sequence[str]) -> int:
    kind = KINDS[options.world]
    with Signals() as signals:

        def body(world: World, library: str) -> int:
            origin = Origin(path, options.world, library, argv)
            return live(train, options, Run(world, options.of_rank(world.rank), origin, signals), kind)

        return kind.enter(body, options)


def live(train: Callable[[Run, Job], None], options: Job, run: Run, kind: Kind) -> int:
    """``train(run, options)`` on one rank, with whatever end it takes; the exit code."""
    try:
        train(run, options)
        return run.finish()
    except PeerFailed as failure:
        code = failure.code
    except AlreadyDone as end:
        code = 0
        if run.rank == 0:
            print(end, flush=True)
            tell_launcher(DONE)
    except RankFailed:
        return _give_up(run)
    except kind.failures as error:
        code = _fail(run, error, kind)
    run.close()
    if run.folder is None:
        run.world.close()
    return code


def _refuse(error: UsageError) -> NoReturn:
    """End before there is a World of ours. Every rank usually makes the same mistake: the lowest that did says it."""
    if environment.only_checks() or environment.launched_by() is None:
        _explain(error)
    else:
        from hpcasync.mpi import MPIWorld, leave

        world = MPIWorld()
        if first_failure(world, 2)[0] == world.rank:
            _explain(error)
        world.close()
        leave(2)
    sys.exit(2)


def _fail(run: Run, error: BaseException, kind: Kind) -> int:
    """End after an exception in train() or in the run's end.

    While starting, the ranks agree on who speaks, and all leave with its exit code. Later the others may be anywhere,
    so the first rank to create FAILED.json speaks and ends all; another that fails waits to be ended.
    """
    code = 2 if isinstance(error, UsageError) else 1
    if run.folder is None:
        try:
            if run.agree(code):
                _explain(error, run.rank)
            return code
        except RankFailed:
            _explain(error, run.rank)
            kind.abort(code)
    try:
        with suppress(RunFailure):
            run.close()
        told = "".join(traceback.format_exception(error))
        if mark_failed(run.folder, run.rank, f"{type(error).__name__}: {error}", told):
            _explain(error, run.rank)
        else:
            time.sleep(GRACE_SECONDS)
    finally:
        kind.abort(code)


def _give_up(run: Run) -> int:
    """End after a death before training: what the dead rank had begun, only it knew."""
    world, _ = recover(run.world, lambda world: None)
    if world.rank == 0:
        _explain(
            UsageError("a rank has died before training began; start the run again, under a new --name if it has one")
        )
    return 1


def _explain(error: BaseException, rank: int = 0) -> None:
    """Say it on stderr: a mistake of the user, or a run that cannot go on, on one line; the rest with its traceback.

    The prefix tells `hpcasync run` that the rank has explained itself (hpcasync/launch/boxes.py).
    """
    if isinstance(error, UsageError | RunFailure):
        message = f"{EXPLANATION}error: {error}\n"
    else:
        message = f"{EXPLANATION}rank {rank} failed\n" + "".join(traceback.format_exception(error))
    sys.stderr.write(message)
    sys.stderr.flush()
