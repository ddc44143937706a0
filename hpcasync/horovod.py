"""HorovodWorld: the ranks of an MPI job whose collectives are Horovod's. Importing it needs Horovod: ``make horovod``.

Horovod's background thread starts an operation when every rank has begun it, fuses small ones, and sums them with MPI.
So ``iallreduce`` progresses without a thread of ours, and ``stale`` is a pipeline over Horovod. What Horovod does not
have (windows, partial allreduces, a node's shared memory) is an MPIWorld's.
"""

from __future__ import annotations

import ctypes
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import horovod
import horovod.torch.mpi_ops as hvd
import torch
from horovod.common.exceptions import HorovodInternalError
from mpi4py import MPI
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.mpi import MPIWorld
from hpcasync.world import RankFailed, Request, WorldError

_START_SECONDS = 60
_NAMES = 8  # reductions of one dtype and length in flight at most; a further one waits for the oldest
_WIRE = {  # what is summed for each dtype: Horovod has no other integers, no bfloat16, and sums float16 in float16
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.int64: torch.int64,
    torch.int32: torch.int32,
    torch.int16: torch.int32,
    torch.int8: torch.int32,
    torch.uint8: torch.int32,
}


class HorovodRequest:
    """See :class:`hpcasync.world.Request`."""

    def __init__(self, handle: int, buffer: Tensor, wait: Callable[[Callable[[], bool]], None]) -> None:
        self._handle, self._wait = handle, wait
        self._buffer: Tensor | None = buffer  # until it is the rank's again

    def test(self) -> bool:
        if self._buffer is not None and hvd.poll(self._handle):
            with _end_as_rank_failed():
                result = hvd.synchronize(self._handle)
            if result is not self._buffer:
                self._buffer.copy_(result)
            self._buffer = None
        return self._buffer is None

    def wait(self) -> None:
        self._wait(self.test)


class HorovodWorld:
    """See :class:`hpcasync.world.World`. One at a time in a process: Horovod has one set of ranks.

    When a rank dies (Open MPI under ``mpirun --with-ft ulfm``), Horovod's threads end on all ranks, and :meth:`shrink`
    starts Horovod anew on the survivors. At two moments Horovod ignores MPI's errors: a death while it starts, which
    takes some milliseconds, makes the other ranks crash; one in the first uses of a name (see :meth:`_begin`) may make
    rank 0 crash as well.

    Args:
        world: the ranks; all of MPI's world unless given. It is this World's from now on.

    Raises:
        UsageError: Horovod was compiled for another MPI than mpi4py runs on.
        WorldError: Horovod has not started within a minute.
    """

    def __init__(self, world: MPIWorld | None = None) -> None:
        _check_library()
        self._world = world or MPIWorld()
        self._numbers: defaultdict[str, Iterator[int]] = defaultdict(count)
        self._requests: dict[str, HorovodRequest] = {}  # the last of each name
        _start(self._world.comm)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    @property
    def library(self) -> str:
        """Horovod's version and the MPI library's, for example "Horovod 0.28.1 on Open MPI v5.0.11"."""
        return f"Horovod {horovod.__version__} on {self._world.library}"

    def buffer(self, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(length, dtype=dtype)

    def allreduce(self, buffer: Tensor) -> None:
        self.iallreduce(buffer).wait()

    def iallreduce(self, buffer: Tensor) -> Request:
        """See :meth:`hpcasync.world.World.iallreduce`.

        Raises:
            UsageError: a dtype that Horovod cannot sum, nor another one for it.
        """
        if buffer.dtype not in _WIRE:
            raise UsageError(f"allreduce: {buffer.dtype}: Horovod sums {', '.join(map(str, _WIRE))}")
        return self._begin(f"sum {buffer.dtype}", buffer, _WIRE[buffer.dtype], hvd.allreduce_async_, op=hvd.Sum)

    def broadcast(self, buffer: Tensor, root: int = 0) -> None:
        content = buffer.detach().view(-1).view(torch.uint8)
        self._begin(f"broadcast {root}", content, torch.uint8, hvd.broadcast_async_, root_rank=root).wait()

    def barrier(self) -> None:
        self.allreduce(torch.zeros(1))  # hvd.barrier() cannot be polled: a rank in it would not hear of a death

    def shrink(self) -> HorovodWorld:
        """See :meth:`hpcasync.world.World.shrink`: Horovod starts anew, on the survivors."""
        hvd.shutdown()
        return HorovodWorld(self._world.shrink())

    def close(self) -> None:
        """Collective. All ranks come here and all leave, or all raise RankFailed."""
        self._world.close()  # returns when all have come: whoever shuts Horovod down ends it on all ranks
        hvd.shutdown()

    def _begin(
        self, kind: str, buffer: Tensor, wire: torch.dtype, verb: Callable[..., int], **options: Any
    ) -> HorovodRequest:
        """Begin ``verb`` on ``buffer``, or on a copy of dtype ``wire`` if it has another one.

        Ranks find together by name, so names count what has begun. They recur, because Horovod keeps its answers to
        1024 names: a known name costs one small allreduce, a new one four messages through rank 0, which ignores their
        error codes. With ever new names, rank 0 crashed in 3 of 7 deaths of another rank; with these, in none of 13.
        """
        buffer = buffer.detach().view(-1)
        kind = f"{kind} {buffer.numel()}"
        name = f"{kind} {next(self._numbers[kind]) % _NAMES}"
        if name in self._requests:
            self._requests[name].wait()
        with _end_as_rank_failed():
            handle = verb(buffer.to(wire), name=name, **options)
        self._requests[name] = HorovodRequest(handle, buffer, self._world.wait_until)
        return self._requests[name]


@contextmanager
def _end_as_rank_failed() -> Iterator[None]:
    """RankFailed in place of Horovod's error that its thread has ended, as it does when a peer is gone."""
    try:
        yield
    except HorovodInternalError as error:
        raise RankFailed from error


def _start(comm: MPI.Intracomm) -> None:
    """Collective. Start Horovod, in a thread that can be given up: with a dead rank, it may never return."""
    starting = threading.Thread(target=hvd.init, args=(comm,), name="horovod start", daemon=True)
    starting.start()
    starting.join(_START_SECONDS)
    if starting.is_alive():
        raise WorldError(f"Horovod has not started within {_START_SECONDS} s: has another rank died meanwhile?")


def _check_library() -> None:
    """Refuse a Horovod that has brought an MPI library of its own into the process."""
    text = ctypes.create_string_buffer(MPI.MAX_LIBRARY_VERSION_STRING)
    ctypes.CDLL(hvd.mpi_lib.__file__).MPI_Get_library_version(text, ctypes.byref(ctypes.c_int()))
    horovods, ours = text.value.decode().strip("\0\n"), MPI.Get_library_version().strip("\0\n")
    if horovods != ours:
        raise UsageError(f"Horovod was built for {_first(horovods)}, and mpi4py runs on {_first(ours)}")


def _first(version: str) -> str:
    return version.splitlines()[0].split(",")[0].strip()
