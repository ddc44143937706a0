"""The parts of a window that lie on other nodes, reached through their owners' inboxes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from hpcasync.mpi.failure import deaths_as_rank_failed
from hpcasync.mpi.inbox import HEADER, NOTHING, PAYLOAD, PULL, PUSH, REPLY, TAKE, Inbox, chunks
from hpcasync.mpi.progress import Wait, look
from hpcasync.mpi.segment import Bytes, Segment


class Remote:
    """The other nodes' parts of window ``number``, for one rank. Constructing it is collective over the world.

    Args:
        segment: this rank's own part, which the others may reach as soon as this returns.
        wait: the World's way to wait.
    """

    def __init__(self, inbox: Inbox, number: int, segment: Segment, wait: Wait) -> None:
        self._inbox, self._number, self._wait = inbox, number, wait
        self._pending: deque[MPI.Request] = deque()  # each keeps its buffer alive
        inbox.register(number, segment)
        self._wait(inbox.comm.Ibarrier().Test)

    def push(self, source: Tensor, rank: int, offset: int) -> None:
        self._ask(PUSH, source, rank, offset, [NOTHING], _chunks(source))

    def pull(self, target: Tensor, rank: int, offset: int) -> None:
        self._ask(PULL, target, rank, offset, _chunks(target), [])

    def take(self, target: Tensor, rank: int, offset: int) -> None:
        self._ask(TAKE, target, rank, offset, _chunks(target), [])

    @deaths_as_rank_failed
    def test(self) -> bool:
        """True if every operation has been answered. Never blocks."""
        while self._pending and self._first_complete():
            self._pending.popleft()
        return not self._pending

    def flush(self) -> None:
        """Return when every operation has been answered."""
        while self._pending:
            self._wait(self._first_complete)
            self._pending.popleft()

    def close(self) -> None:
        """When all ranks have flushed: nobody reaches this rank's part any more."""
        self._inbox.forget(self._number)

    @deaths_as_rank_failed
    def _ask(
        self, verb: int, buffer: Tensor, rank: int, offset: int, answers: Sequence[Bytes], payload: Sequence[Bytes]
    ) -> None:
        """Post one operation: the receives of its answers, the header, what it brings along."""
        self._inbox.check()
        if buffer.numel() == 0:
            return
        comm, header = self._inbox.comm, np.array([self._number, verb, offset, buffer.numel()], np.int64)
        with self._inbox.asking:
            replies = [comm.Irecv(answer, rank, REPLY) for answer in answers]
            self._pending.append(comm.Isend(header, rank, HEADER))
            self._pending.extend(comm.Isend(part, rank, PAYLOAD) for part in payload)
            self._pending.extend(replies)  # last: flush() looks without a pause again after each that is complete

    def _first_complete(self) -> bool:
        self._inbox.poll()  # whoever waits serves: two ranks that push to each other need not wait for their threads
        self._inbox.check()
        return look(self._pending[0].Test)


def _chunks(buffer: Tensor) -> list[Bytes]:
    """The chunks in which ``buffer`` (m,) travels, as views of its bytes."""
    data = buffer.detach().view(-1).view(torch.uint8).numpy()
    size = buffer.element_size()
    return [data[start * size : stop * size] for start, stop in chunks(0, buffer.numel(), buffer.dtype)]
