"""Telling the death of a peer from other errors of the MPI library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mpi4py import MPI

from hpcasync.world import RankFailed

# Without fault tolerance, mpi4py gives these constants the value of MPI_ERR_UNKNOWN.
_DEATHS = {MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED} - {MPI.ERR_UNKNOWN}


def rank_failed(error: MPI.Exception) -> RankFailed | None:
    """What to raise instead of ``error`` when it says that a peer has died; None when it says something else."""
    return RankFailed() if error.Get_error_class() in _DEATHS else None


@contextmanager
def deaths_as_rank_failed() -> Iterator[None]:
    """Around MPI calls: RankFailed in place of MPI's errors about dead ranks."""
    try:
        yield
    except MPI.Exception as error:
        death = rank_failed(error)
        if death is None:
            raise
        raise death from error
