"""Allreduce within a node, where the buffers lie: no copy, no message, and only the ranks' own time.

Numbered phases of reduction k:

1. every rank writes which span of which of its buffers takes part, then ``posted`` = k + 1;
2. a rank that sees all posted adds up its slice of that span of all ranks' buffers, in the order of the ranks, writes
   the sum back into all of them, then ``done`` = k + 1;
3. a rank that sees all done owns its buffer again: it holds the whole sum.

Any thread of a rank may do phase 2: the rank's own while it waits, else the progress thread. All ranks get the same
bits, and a blocking reduction gives the same bits as a non-blocking one.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from hpcasync.mpi.progress import Wait
from hpcasync.mpi.window import allocate
from hpcasync.world import HALF_TYPES, Request, split

_DEPTH = 64  # reductions in flight at most; a further one waits for the oldest
_BLOCK = 1 << 16  # elements added up at a time: 256 kB of float32 stay in a core's cache
_POSTED, _DONE, _SPANS = 0, 1, 2  # columns of the flags: one row per rank, which it alone writes
_ROW = _SPANS + 3 * _DEPTH  # of every reduction in flight: buffer, start, stop


class NodeReduction:
    """The reductions of one node's ranks over buffers that :meth:`buffer` gave them.

    Args:
        comm: the node's ranks.
        wait: the World's way to wait.
    """

    def __init__(self, comm: MPI.Intracomm, wait: Wait) -> None:
        self._comm, self._wait = comm, wait
        self._wins: list[MPI.Win] = []
        flags = self._allocate(comm.size * _ROW * 8 if comm.rank == 0 else 0)[0]
        self._flags = flags[: comm.size * _ROW * 8].view(np.int64).reshape(comm.size, _ROW)
        self._flags[comm.rank] = 0
        self._mine = self._flags[comm.rank]
        self._buffers: list[list[Tensor]] = []  # [buffer][rank]
        self._indices: dict[int, int] = {}  # address of my part's storage -> buffer
        self._wide = torch.empty(_BLOCK)  # where half types are added up
        self._lock = threading.Lock()
        comm.Barrier()

    def buffer(self, length: int, dtype: torch.dtype) -> Tensor:
        """Collective. (length,) zeros of which :meth:`iallreduce` takes all or any span."""
        parts = self._allocate(max(length, 1) * dtype.itemsize)
        tensors = [torch.from_numpy(part[: length * dtype.itemsize]).view(dtype) for part in parts]
        mine = tensors[self._comm.rank].zero_()
        self._indices[mine.untyped_storage().data_ptr()] = len(self._buffers)
        self._buffers.append(tensors)
        self._comm.Barrier()
        return mine

    def owns(self, tensor: Tensor) -> bool:
        """True if ``tensor`` is a buffer of :meth:`buffer` or a span of one."""
        index = self._indices.get(tensor.untyped_storage().data_ptr())
        return index is not None and tensor.dtype == self._buffers[index][0].dtype and tensor.is_contiguous()

    def iallreduce(self, tensor: Tensor) -> NodeRequest:
        """Begin the sum over the node's ranks of a tensor that :meth:`owns`: the same span on all ranks."""
        number = int(self._mine[_POSTED])
        self._wait(lambda: self.complete(number - _DEPTH))
        index, start = self._indices[tensor.untyped_storage().data_ptr()], tensor.storage_offset()
        self._mine[_columns(number)] = index, start, start + tensor.numel()
        self._wins[0].Sync()  # what is written above is seen before what is written below
        self._mine[_POSTED] = number + 1
        return NodeRequest(self, number, self._wait)

    def complete(self, number: int) -> bool:
        """Do what is due of all reductions; True when reduction ``number`` is complete. Any thread."""
        with self._lock:
            while self._mine[_DONE] < self._flags[:, _POSTED].min():
                self._wins[0].Sync()
                self._reduce(int(self._mine[_DONE]))
                self._wins[0].Sync()
                self._mine[_DONE] += 1
        return bool(self._flags[:, _DONE].min() > number)

    def free(self) -> None:
        """Collective."""
        for win in self._wins:
            win.Unlock_all()
            win.Free()

    def _allocate(self, size_bytes: int) -> list[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
        win, parts = allocate(self._comm, size_bytes)
        self._wins.append(win)
        return parts

    def _reduce(self, number: int) -> None:
        """Phase 2: add up my slice of the ranks' spans and write it back into each."""
        if self._comm.size == 1:
            return
        posted = self._flags[:, _columns(number)].tolist()
        spans = [self._buffers[index][rank][start:stop] for rank, (index, start, stop) in enumerate(posted)]
        start, stop = split(spans[0].numel(), self._comm.size)[self._comm.rank]
        half = spans[0].dtype in HALF_TYPES
        for a in range(start, stop, _BLOCK):
            first, *others = [span[a : min(a + _BLOCK, stop)] for span in spans]
            total = self._wide[: first.numel()].copy_(first) if half else first
            for part in others:
                total.add_(part)
            if half:
                first.copy_(total)
            for part in others:
                part.copy_(total)


def _columns(number: int) -> slice:
    """Where a rank's row of the flags says what takes part in reduction ``number``."""
    first = _SPANS + 3 * (number % _DEPTH)
    return slice(first, first + 3)


class NodeRequest:
    """See :class:`hpcasync.world.Request`."""

    def __init__(self, reduction: NodeReduction, number: int, wait: Wait) -> None:
        self._reduction, self._number, self._wait = reduction, number, wait
        self._complete = False

    def poll(self) -> bool:
        """True once the reduction is complete. Any thread."""
        self._complete = self._complete or self._reduction.complete(self._number)
        return self._complete

    test = poll

    def wait(self) -> None:
        self._wait(self.poll)


class SlotRequest:
    """A reduction of ``slot``, whose sum is for ``buffer``."""

    def __init__(self, request: Request, slot: Tensor, buffer: Tensor) -> None:
        self._request, self._slot, self._buffer = request, slot, buffer
        self._home = False

    def test(self) -> bool:
        if not self._home and self._request.test():
            self._buffer.copy_(self._slot)
            self._home = True
        return self._home

    def wait(self) -> None:
        self._request.wait()
        self.test()
