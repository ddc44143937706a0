"""Windows over MPI: direct loads and stores on the owner's memory inside a node, its inbox between nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import cast

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.mpi.remote import Remote
from hpcasync.mpi.segment import Bytes, Segment, segment_bytes


def allocate(comm: MPI.Intracomm, size_bytes: int) -> tuple[MPI.Win, list[Bytes]]:
    """Collective over a node's ranks. A shared window in a passive-target epoch, and every rank's memory as bytes."""
    info = MPI.Info.Create({"alloc_shared_noncontig": "true"})  # each part on its owner's own, page-aligned memory
    win = MPI.Win.Allocate_shared(max(size_bytes, 1), 1, info=info, comm=comm)
    info.Free()
    win.Lock_all(MPI.MODE_NOCHECK)
    return win, [np.frombuffer(cast(memoryview, win.Shared_query(i)[0]), np.uint8) for i in range(comm.size)]


class MPIWindow:
    """See :class:`hpcasync.world.Window`.

    One ``MPI_Win_allocate_shared`` per node under one passive-target epoch; the kernel's pages are touched by their
    owner first, so they lie in its NUMA domain.

    Args:
        comm: the world's ranks.
        node_comm: the node's ranks; ``node_ranks``: their numbers in the world, in the same order.
        connect: given this rank's segment, joins it to the other nodes; None when there are none.
        assembled: a collective context in which the ranks may block inside the MPI library.

    Raises:
        UsageError: by the verbs, for a rank, offset, length, dtype or layout that does not fit.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        node_comm: MPI.Intracomm,
        node_ranks: Sequence[int],
        length: int,
        dtype: torch.dtype,
        connect: Callable[[Segment], Remote] | None,
        assembled: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._dtype, self._assembled = dtype, assembled
        lengths = np.empty(comm.size, np.int64)
        comm.Allgather(np.array([length]), lengths)
        self._lengths: list[int] = lengths.tolist()
        self._win, parts = allocate(node_comm, segment_bytes(length, dtype))
        self._segments = {
            rank: Segment(memory, self._lengths[rank], dtype, first=node_comm.rank)
            for rank, memory in zip(node_ranks, parts, strict=True)
        }
        mine = self._segments[comm.rank]
        mine.create_mutexes()
        self.local = mine.elements
        self.local.zero_()
        node_comm.Barrier()
        self._remote = connect(mine) if connect is not None else None
        self._freed = False

    def push(self, source: Tensor, rank: int, offset: int = 0) -> None:
        self._check("push", source, rank, offset)
        if self._remote is None or self.near(rank):
            self._segments[rank].add(source, offset)
        else:
            self._remote.push(source, rank, offset)

    def pull(self, target: Tensor, rank: int, offset: int = 0) -> None:
        self._check("pull", target, rank, offset)
        if self._remote is None or self.near(rank):
            self._segments[rank].read(target, offset)
        else:
            self._remote.pull(target, rank, offset)

    def take(self, target: Tensor, rank: int, offset: int = 0) -> None:
        self._check("take", target, rank, offset)
        if self._remote is None or self.near(rank):
            self._segments[rank].take(target, offset)
        else:
            self._remote.take(target, rank, offset)

    def near(self, rank: int) -> bool:
        return rank in self._segments

    def test(self) -> bool:
        return self._remote is None or self._remote.test()

    def flush(self) -> None:
        self._win.Sync()
        if self._remote is not None:
            self._remote.flush()

    def free(self) -> None:
        if self._freed:
            return
        self._freed = True
        if self._remote is not None:
            self._remote.flush()
        with self._assembled():
            if self._remote is not None:
                self._remote.close()
            self._win.Unlock_all()
            self._win.Free()

    def _check(self, verb: str, buffer: Tensor, rank: int, offset: int) -> None:
        if not 0 <= rank < len(self._lengths):
            raise UsageError(f"{verb}: rank {rank} is not one of 0 to {len(self._lengths) - 1}")
        if buffer.dtype != self._dtype:
            raise UsageError(f"{verb}: a buffer of {buffer.dtype} for a window of {self._dtype}")
        if not buffer.is_contiguous():
            raise UsageError(f"{verb}: a buffer of shape {tuple(buffer.shape)} is not contiguous")
        if buffer.dim() > 1 or not 0 <= offset <= self._lengths[rank] - buffer.numel():
            raise UsageError(
                f"{verb}: a buffer of shape {tuple(buffer.shape)} at offset {offset} does not fit into "
                f"rank {rank}'s part of shape ({self._lengths[rank]},)"
            )
