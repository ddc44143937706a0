"""The three kinds of worlds, as main() needs them: how to enter one, what it runs on, how to end it at once."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from hpcasync.errors import UsageError
from hpcasync.faults import Faults, Pace, check_kill, parse_kill, parse_slow
from hpcasync.launch import environment
from hpcasync.laws import parse_law
from hpcasync.run.options import Options
from hpcasync.world import World

if TYPE_CHECKING:
    from hpcasync.horovod import HorovodWorld
    from hpcasync.mpi import MPIWorld

START_SECONDS = 300  # from the first rank that starts MPI to the last


@dataclass(frozen=True)
class Kind:
    """One kind of world.

    Attributes:
        enter: (body, options) -> exit code. Calls ``body(world, library)`` once per rank of this process.
        abort: ends all ranks with this exit code, whatever they are doing.
        failures: what ends all ranks when one raises it. Other exceptions only unwind a simulated rank that is dead.
    """

    enter: Callable[[Callable[[World, str], int], Options], int]
    abort: Callable[[int], NoReturn]
    failures: type[BaseException] | tuple[type[BaseException], ...] = BaseException


def _enter_mpi(body: Callable[[World, str], int], options: Options) -> int:
    _limit_start()
    from hpcasync.mpi import MPIWorld  # initialises MPI: not for `--help` or simulated ranks

    return _enter_launched(MPIWorld(), body, options)


def _enter_horovod(body: Callable[[World, str], int], options: Options) -> int:
    _limit_start()
    try:
        from hpcasync.horovod import HorovodWorld
    except (ImportError, OSError) as error:
        raise UsageError(f"--world horovod: Horovod is not installed: make horovod ({error})") from None
    return _enter_launched(HorovodWorld(), body, options)


def _limit_start() -> None:
    """Before MPI starts. Where deaths are tolerated, MPI_Init waits for ever for a rank that has died before it."""
    environment.keep_signals()
    faulthandler.dump_traceback_later(START_SECONDS, exit=True)


def _enter_launched(world: MPIWorld | HorovodWorld, body: Callable[[World, str], int], options: Options) -> int:
    from hpcasync.mpi import leave

    faulthandler.cancel_dump_traceback_later()
    expected = environment.expected_ranks() or environment.srun_tasks()
    if expected is not None and world.size != expected:
        raise UsageError(
            f"{expected} ranks were started, but MPI sees {world.size}: the launcher belongs to another MPI than "
            f"mpi4py's ({world.library}), or it is srun with another --mpi than pmix for Open MPI, pmi2 for MPICH"
        )
    code = body(_with_faults(world, options), world.library)
    leave(code)
    return code


def _abort_mpi(code: int) -> NoReturn:
    from hpcasync.mpi import abort

    if environment.launched_by() is not None:  # alone, there is nobody else to end, and MPI_Abort would only add noise
        abort(code)
    sys.exit(code)


def _enter_sim(body: Callable[[World, str], int], options: Options) -> int:
    from hpcasync.sim import Timetable, simulate

    assert options.ranks is not None  # resolve() has filled it in
    jitter = parse_law(options.jitter) if options.jitter is not None else None
    pace = Pace(options.step_seconds or 1.0, parse_slow(options.slow), jitter)
    pace.check(options.ranks)
    kill = parse_kill(options.kill)
    check_kill(kill, options.ranks)
    compute = pace if options.traces is None else Timetable([[c.seconds for c in trace] for trace in options.traces])
    codes = simulate(
        lambda world: body(world, "SimWorld"), options.ranks, compute=compute, seed=options.seed, kill=kill
    )
    return max((int(code) for code in codes if code is not None), default=1)


def _with_faults(world: World, options: Options) -> World:
    slow, kill = parse_slow(options.slow), parse_kill(options.kill)
    jitter = parse_law(options.jitter) if options.jitter is not None else None
    if not slow and not kill and jitter is None and not options.step_seconds:
        return world
    return Faults(world, slow, jitter, options.step_seconds, options.seed, kill)


KINDS = {
    "mpi": Kind(_enter_mpi, _abort_mpi),
    "sim": Kind(_enter_sim, sys.exit, (Exception, SystemExit, KeyboardInterrupt)),
    "horovod": Kind(_enter_horovod, _abort_mpi),
}
