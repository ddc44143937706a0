"""MPIWorld: the ranks of an MPI job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.mpi.failure import TOLERATED, Lookout, deaths_as_rank_failed
from hpcasync.mpi.inbox import Inbox
from hpcasync.mpi.progress import MPIRequest, Progress, as_bytes, threaded, wait, wire
from hpcasync.mpi.reduction import NodeReduction, NodeRequest, SlotRequest
from hpcasync.mpi.remote import Remote
from hpcasync.mpi.segment import Segment
from hpcasync.mpi.survival import agree, survivors
from hpcasync.mpi.window import MPIWindow, allocate
from hpcasync.partial import PartialRounds
from hpcasync.world import Node, Quorum, RankFailed, Request, WorldError

_DIRECT_BYTES = 1 << 19  # below, MPI's own allreduce is faster than flags read from Python


class MPIWorld:
    """See :class:`hpcasync.world.World`. A process started without a launcher is a world of size 1.

    Args:
        comm: its ranks, and nobody else's messages; a duplicate of MPI's world unless given.
        beside: the World whose channel or leaders these are: one thread and one lookout serve both.

    Raises:
        UsageError: the MPI library does not grant THREAD_MULTIPLE, which the progress thread needs.
    """

    def __init__(self, comm: MPI.Intracomm | None = None, beside: MPIWorld | None = None) -> None:
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise UsageError(
                f"{MPI.Get_library_version().split(',')[0]} grants no THREAD_MULTIPLE (it grants level "
                f"{MPI.Query_thread()}): use a build of it with thread support"
            )
        self._comm = comm or MPI.COMM_WORLD.Dup()
        self.rank, self.size, self.waited = self._comm.rank, self._comm.size, 0.0
        self._progress: Progress = beside._progress if beside else Progress(threaded())
        self._lookout: Lookout = beside._lookout if beside else Lookout(self._comm)
        self._node_comm, self._node_ranks = self._find_node()
        self.node = Node(self._node_comm.rank, self._node_comm.size, self._node_ranks[0])
        self._windows: list[MPIWindow] = []
        self._inbox: Inbox | None = None
        self._reduction: NodeReduction | None = None
        self._shared: list[MPI.Win] = []
        self._channels: list[tuple[MPIWorld, PartialRounds]] = []
        self._beside: list[MPIWorld] = []  # leaders' Worlds: their ranks are some of mine
        self._given_up = self._bereft = False

    @property
    def can_wait_in_backward(self) -> bool:
        return True

    @property
    def library(self) -> str:
        """The MPI library's name and version, for example "Open MPI v5.0.11"."""
        return MPI.Get_library_version().splitlines()[0].split(",")[0].strip()

    @property
    def progress(self) -> str:
        """Who works on what is in flight: "thread", or "none" but the rank itself, between steps and while it waits."""
        return "thread" if self._progress.threaded else "none"

    @property
    def comm(self) -> MPI.Intracomm:
        """The ranks' communicator: to be duplicated, for messages that are not this World's."""
        return self._comm

    def buffer(self, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if self.node.size != self.size or length * dtype.itemsize < _DIRECT_BYTES:
            return torch.zeros(length, dtype=dtype)
        with self._assembled():
            if self._reduction is None:
                self._reduction = NodeReduction(self._node_comm, self._wait)
            return self._reduction.buffer(length, dtype)

    @deaths_as_rank_failed
    def allreduce(self, buffer: Tensor) -> None:
        if (reduction := self._owner(buffer)) is not None:
            reduction.iallreduce(buffer).wait()
            return
        if not self._may_block():  # between nodes it would also spin on the core for as long as the wire takes
            self.iallreduce(buffer).wait()
            return
        travelling = wire(buffer)
        started = self.now()
        self._comm.Allreduce(MPI.IN_PLACE, travelling.numpy(), MPI.SUM)
        self.waited += self.now() - started
        if travelling is not buffer:
            buffer.copy_(travelling)

    @deaths_as_rank_failed
    def iallreduce(self, buffer: Tensor) -> Request:
        if (reduction := self._owner(buffer)) is not None:
            return self._begin(reduction.iallreduce(buffer))
        travelling = wire(buffer)
        request = self._comm.Iallreduce(MPI.IN_PLACE, travelling.numpy(), MPI.SUM)
        return self._begin(MPIRequest(request, buffer, travelling, self._wait))

    @deaths_as_rank_failed
    def ialltoall(self, source: Tensor, target: Tensor) -> Request:
        return self._begin(
            MPIRequest(self._comm.Ialltoall(as_bytes(source), as_bytes(target)), target, target, self._wait)
        )

    @deaths_as_rank_failed
    def iallgather(self, source: Tensor, target: Tensor) -> Request:
        return self._begin(
            MPIRequest(self._comm.Iallgather(as_bytes(source), as_bytes(target)), target, target, self._wait)
        )

    @deaths_as_rank_failed
    def partial(self, like: Sequence[Tensor], quorum: Quorum, bound: int) -> PartialRounds:
        with self._assembled():
            channel = _Channel(self._comm.Dup(), beside=self)
        channel.reserve(like)
        rounds = PartialRounds(channel, like, quorum, bound, PartialRounds.poll)
        rounds.open()
        self._channels.append((channel, rounds))
        self._progress.serve(rounds.poll)
        return rounds

    @deaths_as_rank_failed
    def broadcast(self, buffer: Tensor, root: int = 0) -> None:
        self._wait(self._comm.Ibcast(as_bytes(buffer), root).Test)

    @deaths_as_rank_failed
    def barrier(self) -> None:
        self._wait(self._comm.Ibarrier().Test)

    @deaths_as_rank_failed
    def window(self, length: int, dtype: torch.dtype = torch.float32) -> MPIWindow:
        connect = self._connect if self.node.size < self.size else None
        with self._assembled():
            window = MPIWindow(self._comm, self._node_comm, self._node_ranks, length, dtype, connect, self._assembled)
        self._windows.append(window)
        return window

    @deaths_as_rank_failed
    def shared(self, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
        with self._assembled():
            win, parts = allocate(self._node_comm, length * dtype.itemsize if self.node.rank == 0 else 0)
        self._shared.append(win)
        memory = torch.from_numpy(parts[0][: length * dtype.itemsize]).view(dtype)
        if self.node.rank == 0:
            memory.zero_()
        self._wait(self._node_comm.Ibarrier().Test)
        return memory

    @deaths_as_rank_failed
    def leaders(self) -> MPIWorld | None:
        with self._assembled():
            comm = self._comm.Split(0 if self.node.rank == 0 else MPI.UNDEFINED)
            if comm == MPI.COMM_NULL:
                return None
            world = MPIWorld(cast(MPI.Intracomm, comm), beside=self)
        self._beside.append(world)
        return world

    def wait_until(self, condition: Callable[[], bool]) -> None:
        def look() -> bool:
            for _, rounds in self._channels:
                rounds.poll()
            return condition()

        before = self.waited
        started = self.now()
        self._wait(look)
        self.waited = before + self.now() - started  # a condition that waits itself, as one that flushes, counts once

    def computed(self, seconds: float) -> None:
        self._idle()  # ranks that never wait for each other hear of a death here

    def now(self) -> float:
        return time.monotonic()

    def shrink(self) -> MPIWorld:
        """See :meth:`hpcasync.world.World.shrink`. Memory of windows stays readable; it is not given back.

        Raises:
            WorldError: the launcher does not let ranks survive: Open MPI does under ``mpirun --with-ft ulfm``.
        """
        if not TOLERATED:
            raise WorldError(f"{self.library} goes on without a dead rank only under mpirun --with-ft ulfm (Open MPI)")
        self._progress.end()
        for world in self._worlds():
            world._revoke()
        comm, agreed = self._comm, self._given_up
        while True:
            comm, agreed = survivors(comm, agreed), False
            try:
                world = MPIWorld(comm)
            except RankFailed:  # a rank has died, or has gone on to the next shrink: this comm's are called there
                continue
            world.waited, world._bereft = self.waited, True
            return world

    def close(self) -> None:
        """Collective. All ranks come here and all leave, or all raise RankFailed: a rank that died is none of them."""
        here = self._all_have_come()
        if TOLERATED and not agree(self._comm, here):
            self._given_up = True
            raise RankFailed
        for _, rounds in self._channels:
            rounds.close()
        if self._bereft:  # no more calls into MPI that wait for anyone; the process is about to end (see leave())
            self._progress.end()
            return
        for world in self._worlds():
            for window in world._windows:
                window.free()
        self._progress.end()
        for world in self._worlds():
            world._free()

    def _all_have_come(self) -> bool:
        try:
            self.barrier()
        except RankFailed:
            self._revoke()  # nobody shall wait here for one that has gone to shrink()
            return False
        return True

    def _worlds(self) -> list[MPIWorld]:
        """This World and those that share its ranks."""
        return [self, *(channel for channel, _ in self._channels), *self._beside]

    def _revoke(self) -> None:
        """Wake whoever waits for me in a collective of this World."""
        for comm in (self._comm, self._node_comm, *([self._inbox.comm] if self._inbox else [])):
            comm.Revoke()

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

    def _owner(self, buffer: Tensor) -> NodeReduction | None:
        """Who reduces ``buffer`` where it lies, if it is one of :meth:`buffer` or a span of it."""
        return self._reduction if self._reduction is not None and self._reduction.owns(buffer) else None

    def _begin(self, request: MPIRequest | NodeRequest) -> Request:
        if not request.poll():
            self._progress.add(request)
        return request

    @contextmanager
    def _assembled(self) -> Iterator[None]:
        """Collective. When all ranks have come, the body runs, in which they may block inside the MPI library.

        Between nodes, Open MPI delivers next to nothing to a rank of which one thread blocks and another one tests. So
        the progress thread pauses meanwhile. Nobody needs it to get through the body: all ranks are there, and what
        their threads do never waits for another rank.
        """
        if self._may_block():
            yield
            return
        self.barrier()
        with self._progress.paused():
            yield

    def _may_block(self) -> bool:
        """True if a rank that blocks inside the MPI library still does for the others what they wait for."""
        return self.node.size == self.size and self._progress.threaded

    def _connect(self, segment: Segment) -> Remote:
        """Let other nodes reach this rank's part of the window that is being made. Collective."""
        if self._inbox is None:
            others = [rank for rank in range(self.size) if rank not in self._node_ranks]
            self._inbox = Inbox(self._comm, others)
            self._progress.serve(self._inbox.poll)
        return Remote(self._inbox, len(self._windows), segment, self._wait)

    @deaths_as_rank_failed
    def _find_node(self) -> tuple[MPI.Intracomm, list[int]]:
        """Collective. The ranks that share this one's memory, and their numbers in this World."""
        comm = cast(MPI.Intracomm, self._comm.Split_type(MPI.COMM_TYPE_SHARED))
        members = np.empty(comm.size, np.int64)
        self._wait(comm.Iallgather(np.array([self.rank]), members).Test)
        return comm, members.tolist()

    @deaths_as_rank_failed
    def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition()`` is true, or raise RankFailed."""
        self.waited += wait(condition, self._idle)

    def _idle(self) -> None:
        """Between two looks of a wait, and between two steps."""
        if not self._progress.threaded:
            self._progress.poll()
        self._lookout.check()


class _Channel(MPIWorld):
    """The World of partial allreduces, which test their requests themselves whenever they are polled."""

    def reserve(self, like: Sequence[Tensor]) -> None:
        """Collective. Memory in which messages like these are reduced that are none of my buffers, one at a time: to
        carry them there and back takes less time than MPI's reduction."""
        self._slots = [self.buffer(message.numel(), message.dtype) for message in like]

    def iallreduce(self, buffer: Tensor) -> Request:
        slot = self._slot(buffer)
        if slot is None:
            return super().iallreduce(buffer)
        return SlotRequest(super().iallreduce(slot.copy_(buffer)), slot, buffer)

    def _slot(self, buffer: Tensor) -> Tensor | None:
        """Where ``buffer`` is reduced, if that is not where it lies and yet on the node."""
        if self._owner(buffer):
            return None
        like = (buffer.numel(), buffer.dtype)
        return next((slot for slot in self._slots if (slot.numel(), slot.dtype) == like and self._owner(slot)), None)

    def _begin(self, request: MPIRequest | NodeRequest) -> Request:
        return request
