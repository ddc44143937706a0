"""The death of a rank, and how the others notice it.

Open MPI under ``mpirun --with-ft ulfm`` (User-Level Failure Mitigation). Elsewhere the launcher ends the job when a
rank dies, and nothing here ever finds anything.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from mpi4py import MPI

from hpcasync.world import RankFailed

# Without fault tolerance, mpi4py gives these constants the value of MPI_ERR_UNKNOWN.
_DEATHS = {MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED} - {MPI.ERR_UNKNOWN}
_LOOK_SECONDS = 0.02
_TAG = 1  # of messages that nobody sends

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

TOLERATED = bool(_DEATHS) and os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"  # noqa: SIM112 -- its real name
"""True if this job may lose ranks and go on: Open MPI, started with ``--with-ft ulfm``."""


def rank_failed(error: MPI.Exception) -> RankFailed | None:
    """What to raise instead of ``error`` when it says that a peer has died; None when it says something else."""
    return RankFailed() if error.Get_error_class() in _DEATHS else None


def deaths_as_rank_failed(verb: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """``verb``, but RankFailed in place of MPI's errors about dead ranks."""

    @functools.wraps(verb)
    def told(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return verb(*args, **kwargs)
        except MPI.Exception as error:
            death = rank_failed(error)
            if death is None:
                raise
            raise death from error

    return told


class Lookout:
    """Notices that a rank of ``comm`` has died, or that a peer has noticed one and gives the World up."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._next = 0.0

    def check(self) -> None:
        """Raise RankFailed if so. Looks every 20 ms at most, so it may be called often; for the rank's own thread."""
        if TOLERATED and time.monotonic() >= self._next:
            self._look()
            self._next = time.monotonic() + _LOOK_SECONDS

    @deaths_as_rank_failed
    def _look(self) -> None:
        self._comm.Iprobe(self._comm.rank, _TAG)  # Get_failed() alone was seen to notice nothing for 5 s
        failed = self._comm.Get_failed()
        ranks = failed.Translate_ranks(range(failed.size), self._comm.Get_group()) if failed.size else ()
        failed.Free()
        if ranks or self._comm.Is_revoked():
            raise RankFailed(tuple(int(rank) for rank in ranks))
