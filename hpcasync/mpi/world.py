"""MPIWorld: the ranks of an MPI job."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.mpi.inbox import Inbox
from hpcasync.mpi.progress import MPIRequest, Progress, wait, wire
from hpcasync.mpi.reduction import NodeReduction, NodeRequest
from hpcasync.mpi.remote import Remote
from hpcasync.mpi.segment import Segment
from hpcasync.mpi.window import MPIWindow, allocate
from hpcasync.partial import PartialRounds
from hpcasync.world import Node, Quorum, RankFailed, Request, World

_DIRECT_BYTES = 1 << 16  # below, MPI's own allreduce is faster than flags read from Python


class MPIWorld:
    """See :class:`hpcasync.world.World`. A process started without a launcher is a world of size 1.

    Args:
        comm: whose ranks; MPI's world unless given. It is duplicated, so the caller's messages stay apart.
        progress: the thread of the World whose channel this one is (see :meth:`partial`); one of its own unless given.

    Raises:
        UsageError: the MPI library does not grant THREAD_MULTIPLE, which the progress thread needs.
    """

    def __init__(self, comm: MPI.Intracomm | None = None, progress: Progress | None = None) -> None:
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise UsageError(
                f"{MPI.Get_library_version().split(',')[0]} grants no THREAD_MULTIPLE (it grants level "
                f"{MPI.Query_thread()}): use a build of it with thread support"
            )
        self._comm = (comm or MPI.COMM_WORLD).Dup()
        self._node_comm = cast(MPI.Intracomm, self._comm.Split_type(MPI.COMM_TYPE_SHARED))
        self.rank, self.size = self._comm.rank, self._comm.size
        members = np.empty(self._node_comm.size, np.int64)
        self._node_comm.Allgather(np.array([self.rank]), members)
        self._node_ranks = [int(rank) for rank in members]
        self.node = Node(self._node_comm.rank, self._node_comm.size, self._node_ranks[0])
        self.waited = 0.0
        self._progress = progress or Progress()
        self._windows: list[MPIWindow] = []
        self._inbox: Inbox | None = None
        self._reduction: NodeReduction | None = None
        self._shared: list[MPI.Win] = []
        self._channels: list[tuple[MPIWorld, PartialRounds]] = []
        self._beside: list[MPIWorld] = []  # leaders' Worlds: their ranks are some of mine

    @property
    def can_wait_in_backward(self) -> bool:
        return True

    @property
    def library(self) -> str:
        """The MPI library's name and version, for example "Open MPI v5.0.11"."""
        return MPI.Get_library_version().splitlines()[0].split(",")[0].strip()

    def buffer(self, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if self.node.size != self.size or length * dtype.itemsize < _DIRECT_BYTES:
            return torch.zeros(length, dtype=dtype)
        if self._reduction is None:
            self._reduction = NodeReduction(self._node_comm, self._count_wait)
        return self._reduction.buffer(length, dtype)

    def allreduce(self, buffer: Tensor) -> None:
        if self._reduction is not None and self._reduction.owns(buffer):
            self._reduction.iallreduce(buffer).wait()
            return
        if self.node.size < self.size:  # a blocking call would spin on the core for as long as the wire takes
            self.iallreduce(buffer).wait()
            return
        travelling = wire(buffer)
        started = self.now()
        self._comm.Allreduce(MPI.IN_PLACE, travelling.numpy(), MPI.SUM)
        self._count_wait(self.now() - started)
        if travelling is not buffer:
            buffer.copy_(travelling)

    def iallreduce(self, buffer: Tensor) -> Request:
        if self._reduction is not None and self._reduction.owns(buffer):
            return self._begin(self._reduction.iallreduce(buffer))
        travelling = wire(buffer)
        request = self._comm.Iallreduce(MPI.IN_PLACE, travelling.numpy(), MPI.SUM)
        return self._begin(MPIRequest(request, buffer, travelling, self._count_wait))

    def partial(self, like: Sequence[Tensor], quorum: Quorum, bound: int) -> PartialRounds:
        channel = MPIWorld(self._comm, self._progress)
        rounds = PartialRounds(channel, like, quorum, bound, PartialRounds.poll)
        rounds.open()
        self._channels.append((channel, rounds))
        self._progress.serve(rounds.poll)
        return rounds

    def broadcast(self, buffer: Tensor, root: int = 0) -> None:
        self._comm.Bcast(buffer.detach().view(-1).view(torch.uint8).numpy(), root)

    def barrier(self) -> None:
        request = self._comm.Ibarrier()
        self._count_wait(wait(request.Test))

    def window(self, length: int, dtype: torch.dtype = torch.float32) -> MPIWindow:
        connect = self._connect if self.node.size < self.size else None
        window = MPIWindow(self._comm, self._node_comm, self._node_ranks, length, dtype, connect)
        self._windows.append(window)
        return window

    def shared(self, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
        win, parts = allocate(self._node_comm, length * dtype.itemsize if self.node.rank == 0 else 0)
        self._shared.append(win)
        memory = torch.from_numpy(parts[0][: length * dtype.itemsize]).view(dtype)
        if self.node.rank == 0:
            memory.zero_()
        self._node_comm.Barrier()
        return memory

    def leaders(self) -> MPIWorld | None:
        comm = self._comm.Split(0 if self.node.rank == 0 else MPI.UNDEFINED)
        if comm == MPI.COMM_NULL:
            return None
        world = MPIWorld(cast(MPI.Intracomm, comm), self._progress)
        comm.Free()
        self._beside.append(world)
        return world

    def wait_until(self, condition: Callable[[], bool]) -> None:
        def look() -> bool:
            for _, rounds in self._channels:
                rounds.poll()
            return condition()

        before = self.waited
        seconds = wait(look)
        self.waited = before + seconds  # a condition that waits itself, as one that flushes does, counts once

    def computed(self, seconds: float) -> None:
        pass

    def now(self) -> float:
        return time.monotonic()

    def shrink(self) -> World:
        raise RankFailed

    def close(self) -> None:
        self.barrier()
        for _, rounds in self._channels:
            rounds.close()
        worlds = [self, *(channel for channel, _ in self._channels), *self._beside]
        for world in worlds:
            for window in world._windows:
                window.free()
        self._progress.end()
        for world in worlds:
            world._free()

    def _free(self) -> None:
        if self._inbox is not None:
            self._inbox.close()
        if self._reduction is not None:
            self._reduction.free()
        for win in self._shared:
            win.Unlock_all()
            win.Free()
        self._node_comm.Free()
        self._comm.Free()

    def _begin(self, request: MPIRequest | NodeRequest) -> Request:
        if not request.poll():
            self._progress.add(request)
        return request

    def _connect(self, segment: Segment) -> Remote:
        """Let other nodes reach this rank's part of the window that is being made. Collective."""
        if self._inbox is None:
            others = [rank for rank in range(self.size) if rank not in self._node_ranks]
            self._inbox = Inbox(self._comm, others)
            self._progress.serve(self._inbox.poll)
        return Remote(self._inbox, len(self._windows), segment, self._count_wait)

    def _count_wait(self, seconds: float) -> None:
        self.waited += seconds


def abort(code: int) -> None:
    """End every rank of the job at once."""
    MPI.COMM_WORLD.Abort(code)
