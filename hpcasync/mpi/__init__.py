"""The World of real ranks, over mpi4py: Open MPI or MPICH."""

from hpcasync.mpi.guarded import say_up
from hpcasync.mpi.survival import abort, leave
from hpcasync.mpi.world import MPIWorld

__all__ = ["MPIWorld", "abort", "leave"]

say_up()  # the imports above have started MPI
