"""The World of real ranks, over mpi4py: Open MPI or MPICH."""

from hpcasync.mpi.world import MPIWorld, abort

__all__ = ["MPIWorld", "abort"]
