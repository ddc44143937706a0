"""A rank's inbox: what ranks of other nodes ask of its windows, answered while the rank computes.

Messages on a communicator of their own, from named sources only (a receive from any source hangs the survivors when a
rank dies). An operation is a header ``(window, verb, offset, length)`` with tag HEADER; for a push the elements follow
in chunks, tag PAYLOAD. Every operation has one answer, tag REPLY: the elements in chunks, or an empty message when a
push has been added. A source's operations are answered in the order in which it asked, so nothing needs a number.

While no message comes, a source costs its header of 32 bytes. Chunks are received, and sent, from lanes that all
sources share; the elements themselves are changed under the segment's mutexes, as by the ranks of this node.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from hpcasync.mpi.failure import rank_failed
from hpcasync.mpi.progress import look, wait
from hpcasync.mpi.segment import Bytes, Segment

HEADER, PAYLOAD, REPLY = 1, 2, 3  # tags
PUSH, PULL, TAKE = 1, 2, 3  # verbs
NOTHING = np.empty(0, np.uint8)

CHUNK_BYTES = 1 << 20  # a message this long fills the wire; a multiple of every dtype's size
_DEPTH = 4  # chunks of one operation under way at once: while one is added, the next ones need no answer of ours
_LANES = 8  # operations served at once


def chunks(offset: int, length: int, dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    """[start, stop) of the chunks in which elements [offset, offset + length) travel."""
    step, end = CHUNK_BYTES // dtype.itemsize, offset + length
    return ((start, min(start + step, end)) for start in range(offset, end, step))


class Inbox:
    """Serves the registered segments to ``sources``, ranks of ``comm``, whenever somebody calls :meth:`poll`.

    ``comm`` is duplicated, which is collective.
    """

    def __init__(self, comm: MPI.Intracomm, sources: Sequence[int]) -> None:
        self.comm = comm.Dup()
        self._segments: dict[int, Segment] = {}
        # A lane is _DEPTH chunks of memory. Pages that nobody has used yet take no room.
        self._lanes = deque([np.empty(CHUNK_BYTES, np.uint8) for _ in range(_DEPTH)] for _ in range(_LANES))
        self._queue: deque[int] = deque()  # services that wait for a lane
        self._services = [self._serve(i, source) for i, source in enumerate(sources)]
        self._awaited = [next(service) for service in self._services]
        self._statuses: list[MPI.Status] = []
        self._serving = 0
        self._turn = threading.Lock()
        self.asking = threading.Lock()  # held while the messages of one operation are posted
        self._error: Exception | None = None

    def register(self, number: int, segment: Segment) -> None:
        """Serve ``segment`` as this rank's part of window ``number``. The sources may ask from now on."""
        self._segments[number] = segment

    def forget(self, number: int) -> None:
        """The window is no more. The sources have stopped asking for it."""
        del self._segments[number]

    def poll(self) -> bool:
        """Serve what has arrived; True if that was anything. Any thread; beside another that polls, returns at once."""
        if self._error is not None or not self._turn.acquire(blocking=False):
            return False
        try:
            ready = look(self._arrived) if self._serving else self._arrived()
            for index in ready:
                self._awaited[index] = next(self._services[index])
            while self._queue and self._lanes:
                index = self._queue.popleft()
                self._awaited[index] = next(self._services[index])
            return bool(ready)
        except Exception as error:
            self._error = self._reason(error)
            return False
        finally:
            self._turn.release()

    def check(self) -> None:
        """Raise what has ended the service: RankFailed when a source has died."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Collective. Every source's operations have been answered: it has flushed, and nobody asks any more."""
        wait(self._idle)
        for request in self._awaited:
            request.Cancel()
            request.Wait()
        self.comm.Free()

    def _arrived(self) -> list[int]:
        return MPI.Request.Testsome(self._awaited, self._statuses) or []

    def _reason(self, error: Exception) -> Exception:
        """What the rank is to be told: RankFailed if a source has died, which MPI writes into the statuses only."""
        if isinstance(error, MPI.Exception):
            errors = [error, *(MPI.Exception(status.Get_error()) for status in self._statuses)]
            return next(filter(None, map(rank_failed, errors)), error)
        return error

    def _idle(self) -> bool:
        self.poll()
        self.check()
        return self._serving == 0

    def _serve(self, index: int, source: int) -> Iterator[MPI.Request]:
        """One source's operations, for ever. Goes on when the request that it has yielded is complete."""
        header = np.empty(4, np.int64)
        while True:
            yield self.comm.Irecv(header, source, HEADER)
            self._serving += 1
            number, verb, offset, length = header.tolist()
            if self._queue or not self._lanes:
                self._queue.append(index)
                yield MPI.REQUEST_NULL  # until poll() has a lane for this service
            lane = self._lanes.popleft()
            segment = self._segments[number]
            if verb == PUSH:
                yield from self._receive(segment, source, offset, length, lane)
            else:
                read = segment.read if verb == PULL else segment.take
                yield from self._answer(segment, read, source, offset, length, lane)
            self._lanes.append(lane)
            self._serving -= 1

    def _receive(
        self, segment: Segment, source: int, offset: int, length: int, lane: list[Bytes]
    ) -> Iterator[MPI.Request]:
        """Add what a push brings, each chunk while the next ones arrive."""
        dtype = segment.elements.dtype

        def receive(start: int, stop: int, chunk: Bytes) -> tuple[int, Bytes, MPI.Request]:
            part = chunk[: (stop - start) * dtype.itemsize]
            return start, part, self.comm.Irecv(part, source, PAYLOAD)

        parts = zip(chunks(offset, length, dtype), itertools.cycle(lane), strict=False)
        receives = (receive(*span, chunk) for span, chunk in parts)
        under_way = deque(itertools.islice(receives, _DEPTH))
        while under_way:
            start, part, request = under_way.popleft()
            yield request
            segment.add(torch.from_numpy(part).view(dtype), start)
            under_way.extend(itertools.islice(receives, 1))
        yield self.comm.Isend(NOTHING, source, REPLY)

    def _answer(
        self,
        segment: Segment,
        read: Callable[[Tensor, int], None],
        source: int,
        offset: int,
        length: int,
        lane: list[Bytes],
    ) -> Iterator[MPI.Request]:
        """Send what a pull or take asks for, each chunk read while the one before it travels."""
        dtype = segment.elements.dtype

        def send(start: int, stop: int, chunk: Bytes) -> MPI.Request:
            part = chunk[: (stop - start) * dtype.itemsize]
            read(torch.from_numpy(part).view(dtype), start)
            return self.comm.Isend(part, source, REPLY)

        parts = zip(chunks(offset, length, dtype), itertools.cycle(lane), strict=False)
        sends = (send(*span, chunk) for span, chunk in parts)
        under_way = deque(itertools.islice(sends, _DEPTH))
        while under_way:
            yield under_way.popleft()
            under_way.extend(itertools.islice(sends, 1))
