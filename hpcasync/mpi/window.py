"""Windows over MPI: inside a node direct loads and stores on the owner's memory, which never wait for the owner.

Layout of a rank's segment: ``stripes`` robust mutexes of 64 bytes, then its ``length`` elements. A push holds the mutex
of the stripe it adds to, so pushes add up; a pull reads without locks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from hpcasync.mpi.mutex import BYTES, Mutexes

STRIPE = 1 << 18  # elements per mutex: 1 MB of float32, long enough that a lock costs nothing beside the addition


Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


def allocate(comm: MPI.Intracomm, size_bytes: int) -> tuple[MPI.Win, list[Bytes]]:
    """Collective over a node's ranks. A shared window in a passive-target epoch, and every rank's memory as bytes."""
    info = MPI.Info.Create({"alloc_shared_noncontig": "true"})  # each part on its owner's own, page-aligned memory
    win = MPI.Win.Allocate_shared(max(size_bytes, 1), 1, info=info, comm=comm)
    info.Free()
    win.Lock_all(MPI.MODE_NOCHECK)
    return win, [np.frombuffer(cast(memoryview, win.Shared_query(i)[0]), np.uint8) for i in range(comm.size)]


class Segment:
    """One rank's part of a window, as this rank sees it: a view of the owner's memory."""

    def __init__(self, memory: Bytes, length: int, dtype: torch.dtype) -> None:
        stripes = -(-length // STRIPE)
        self.mutexes = Mutexes(memory.ctypes.data, stripes)
        start = stripes * BYTES
        self.elements = torch.from_numpy(memory[start : start + length * dtype.itemsize]).view(dtype)

    def stripes(self, start: int, stop: int, first: int) -> Iterator[tuple[int, int, int]]:
        """(stripe, a, b) for the pieces [a, b) of [start, stop), beginning with the ``first``-th and going round.

        Ranks that push to one owner at the same time begin at different stripes, so they do not queue up.
        """
        numbers = range(start // STRIPE, -(-stop // STRIPE))
        for i in range(len(numbers)):
            stripe = numbers[(i + first) % len(numbers)]
            yield stripe, max(start, stripe * STRIPE), min(stop, (stripe + 1) * STRIPE)


class MPIWindow:
    """See :class:`hpcasync.world.Window`.

    One ``MPI_Win_allocate_shared`` per node under one passive-target epoch; the kernel's pages are touched by their
    owner first, so they lie in its NUMA domain.
    """

    def __init__(self, comm: MPI.Intracomm, ranks: Sequence[int], length: int, dtype: torch.dtype) -> None:
        """``comm``: the node's ranks; ``ranks``: their numbers in the world, in the same order."""
        self._first = comm.rank
        lengths = np.empty(comm.size, np.int64)
        comm.Allgather(np.array([length]), lengths)
        self._win, segments = allocate(comm, -(-length // STRIPE) * BYTES + length * dtype.itemsize)
        self._segments = {
            rank: Segment(memory, int(n), dtype) for rank, memory, n in zip(ranks, segments, lengths, strict=True)
        }
        mine = self._segments[ranks[comm.rank]]
        mine.mutexes.create()
        self.local = mine.elements
        self.local.zero_()
        comm.Barrier()

    def push(self, source: Tensor, rank: int, offset: int = 0) -> None:
        segment = self._segments[rank]
        for stripe, start, stop in segment.stripes(offset, offset + source.numel(), self._first):
            with segment.mutexes.hold(stripe):
                segment.elements[start:stop].add_(source[start - offset : stop - offset])

    def pull(self, target: Tensor, rank: int, offset: int = 0) -> None:
        target.copy_(self._segments[rank].elements[offset : offset + target.numel()])

    def take(self, target: Tensor, rank: int, offset: int = 0) -> None:
        segment = self._segments[rank]
        for stripe, start, stop in segment.stripes(offset, offset + target.numel(), self._first):
            with segment.mutexes.hold(stripe):
                target[start - offset : stop - offset] = segment.elements[start:stop]
                segment.elements[start:stop].zero_()

    def flush(self) -> None:
        self._win.Sync()

    def free(self) -> None:
        self._win.Unlock_all()
        self._win.Free()
