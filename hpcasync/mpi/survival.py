"""Going on without the dead: what the living agree on, and how a process ends when it cannot end as usual."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn, cast

import numpy as np
from mpi4py import MPI

from hpcasync.mpi.failure import TOLERATED, rank_failed
from hpcasync.mpi.guarded import say_leaving
from hpcasync.mpi.progress import wait

_SETTLE_SECONDS = 1.0
_FORWARD_SECONDS = 0.2  # for the launcher to pass on what was printed: it need not, once the job is aborted
_ABORT_SECONDS = 1  # for MPI_Abort to end this process


def agree(comm: MPI.Intracomm, well: bool) -> bool:
    """Collective among the living. True, on all of them, if all are ``well`` and none has died.

    The one call that gives every rank the same answer whoever dies meanwhile, also on a revoked communicator.
    """
    flag = np.array([well], np.int32)
    try:
        wait(comm.Iagree(flag).Test)
    except MPI.Exception as error:
        if rank_failed(error) is None:
            raise
        return False
    return bool(flag[0])


def survivors(comm: MPI.Intracomm, settled: bool) -> MPI.Intracomm:
    """Collective among the living: a communicator of them, after a moment in which deaths that come in series happen.

    Args:
        settled: :func:`agree` has been called on ``comm`` and has said False; else it is called here.
    """
    comm.Revoke()
    time.sleep(_SETTLE_SECONDS)
    if not settled:
        agree(comm, False)
    return cast(MPI.Intracomm, comm.Shrink())


def leave(code: int) -> None:
    """Exit with ``code`` where ranks may have died, after what they have in common: MPI_Finalize would wait for them.

    Elsewhere return: the interpreter's end calls MPI_Finalize.
    """
    say_leaving()
    if TOLERATED:
        atexit._run_exitfuncs()
        _flush()
        os._exit(code)


def abort(code: int) -> NoReturn:
    """End every rank of the job at once, whatever it is doing.

    Should MPI_Abort not end this process, SIGALRM does. A death by a signal is what the others hear of: Open MPI 5.0.11
    tells nobody about a rank that leaves with an exit code other than 0.
    """
    _flush()
    time.sleep(_FORWARD_SECONDS)
    say_leaving()
    if threading.current_thread() is threading.main_thread():  # no other may
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_ABORT_SECONDS)
    MPI.COMM_WORLD.Abort(code)
    signal.pause()  # MPICH's may return before its launcher ends this process
    raise AssertionError("SIGALRM did not end this process")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
