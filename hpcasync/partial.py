"""The rounds of a partial allreduce, as a state machine that never blocks; every kind of World drives it.

Li et al., "Taming Unbalanced Training Workloads in Deep Learning with Partial Collective Operations", PPoPP 2020
(https://arxiv.org/abs/1908.04207), with a quorum of any size and a bound on the rounds that a rank may miss in a row.

Numbered phases of round R. One rank, drawn at random among those that have not left, is its initiator:

1. a rank that has contributions pending, or has left and has none, marks that in its cell of the initiator's board;
2. when the marks are a quorum, and every rank that has missed ``bound`` rounds in a row is among them, the initiator
   activates the round: it adds 1 to the ``activations`` of every rank;
3. a rank that sees this hands over its pending contributions, or zeros, with two integers per rank: how many
   contributions these are, and whether it has left;
4. when the sums are there, all ranks know the same: who contributed, who has missed how many rounds, who has left. From
   this follow the initiator of round R + 1 and those whom it waits for.

Contributions are not copied: a rank hands its messages over and fills others, which go round in turn. A few of them are
the channel's buffers; a rank that falls behind needs more, and those are its own memory.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.world import Quorum, Reduce, Request, Round, Stages, World, WorldError

_KEPT = 4  # sets of messages that are the channel's: one being filled, one waiting, one travelling, one being read


class PartialRounds:
    """One rank's part in the rounds; see :class:`hpcasync.world.Partial`.

    The rank calls the methods of ``Partial``. Whoever drives the rounds calls :meth:`open` once and then :meth:`poll`
    again and again, from any thread.

    Args:
        channel: a World of the same ranks whose collectives nobody else calls.
        like: the messages have their lengths and dtypes.
        wake: called with this object when the rank has given :meth:`poll` something to do.

    Raises:
        UsageError: a quorum of more ranks than there are, or a negative bound.
    """

    def __init__(
        self,
        channel: World,
        like: Sequence[Tensor],
        quorum: Quorum,
        bound: int,
        wake: Callable[[PartialRounds], object],
    ) -> None:
        size = channel.size
        if not 1 <= quorum.ready <= size:
            raise UsageError(f"quorum={quorum.ready}: it is a number of ranks, here from 1 to {size}")
        if bound < 0:
            raise UsageError(f"bound={bound}: it counts rounds, so 0 or more")
        self._channel, self._quorum, self._bound, self._wake = channel, quorum, bound, wake
        self._rank, self._size = channel.rank, size
        self._layout = [(message.numel(), message.dtype) for message in like]
        self._messages = threading.Lock()  # guards what follows
        self._filled: list[list[Tensor]] = []  # contributions that no round has taken yet
        self._spare: deque[list[Tensor]] = deque()  # the channel's own on the right
        self._kept: set[int] = set()  # addresses of these
        self._arrived: deque[Round] = deque()
        self._lent: list[Tensor] | None = None
        self._left = False
        self._pending = 0
        self._turn = threading.Lock()  # guards what follows
        self._known = torch.zeros(2, size, dtype=torch.int64)  # travels: contributions; has left
        self._table = self._known.numpy()  # the same memory: NumPy takes a tenth of the time for a number
        self._one = torch.ones(1, dtype=torch.int64)
        self._cells = [0] * size  # mine on each rank's board
        self._difference = torch.zeros(1, dtype=torch.int64)
        self._travelling: list[Tensor] = []
        self._reduce: Reduce = _sums
        self._stages: Stages = iter(())  # of the round that is travelling
        self._requests: Sequence[Request] = []
        self._round = self._initiator = 0
        self._random = random.Random(0)  # in the same state on every rank
        self._marked = self._activated = self._ended = False
        self._missed = np.zeros(size, np.int64)
        self._gone = np.zeros(size, np.bool_)
        self._error: Exception | None = None
        self._draw()

    def open(self) -> None:
        """Collective. Before the first :meth:`poll`."""
        for _ in range(_KEPT):
            messages = [self._channel.buffer(length, dtype) for length, dtype in self._layout]
            self._kept.add(messages[0].data_ptr())
            self._spare.append(messages)
        self._board = self._channel.window(self._size, torch.int64)
        self._activations = self._channel.window(1, torch.int64)

    # The rank's side

    @property
    def pending(self) -> int:
        self._check()
        return self._pending

    @property
    def has_arrived(self) -> bool:
        self._check()
        return bool(self._arrived)

    @property
    def over(self) -> bool:
        self._check()
        return self._ended and not self._arrived

    def unused(self) -> list[Tensor]:
        with self._messages:
            return self._take_spare()

    def contribute(self, messages: Sequence[Tensor]) -> list[Tensor]:
        self._check()
        if self._left:
            raise WorldError(f"rank {self._rank} contributes after it has left")
        with self._messages:
            self._filled.append(list(messages))
            unused = self._take_spare()
            self._pending += 1
        self._wake(self)
        return unused

    def arrived(self) -> Round | None:
        self._check()
        with self._messages:
            if self._lent is not None:
                self._put_back(self._lent)
                self._lent = None
            if not self._arrived:
                return None
            round_ = self._arrived.popleft()
            self._lent = list(round_.messages)
            return round_

    def reduce_by(self, reduce: Reduce) -> None:
        self._reduce = reduce

    def leave(self) -> None:
        self._check()
        with self._messages:
            self._left = True
        self._wake(self)

    def rejoin(self) -> None:
        self._check()
        if not self.over:
            raise WorldError(f"rank {self._rank} rejoins rounds that are not over")
        with self._turn:
            self._random.seed(0)
            self._missed[:] = 0
            self._gone[:] = False
            self._left = self._ended = False
            self._draw()
        self._wake(self)

    # The driver's side

    def poll(self) -> bool:
        """Do what can be done without waiting; True if it is worth looking again soon: a sum is on its way.

        Beside another that polls, returns at once. What goes wrong is kept for the rank's next call.
        """
        if not self._turn.acquire(blocking=False):
            return False
        joined = False
        try:
            while (act := self.due()) is not None:
                act()
                joined = bool(self._requests)
        except Exception as error:
            self.fail(error)
        finally:
            self._turn.release()
        return joined

    def due(self) -> Callable[[], None] | None:
        """What can be done now without waiting. Only looks, so a condition of ``wait_until`` may call it."""
        if self._ended or self._error is not None:
            return None
        if self._requests:
            done = [request.test() for request in self._requests]  # all of them: each test brings its buffer home
            return self._advance if all(done) else None
        if int(self._activations.local) > self._round:
            return self._join
        unmarked = not self._marked and not self._gone[self._rank]
        if unmarked and (self._filled or self._left) and self._board.test():
            return self._mark
        initiating = self._initiator == self._rank and not self._activated
        if initiating and self._may_start() and self._activations.test():
            return self._activate
        return None

    def fail(self, error: Exception) -> None:
        """Nothing more is done; the rank's next call raises ``error``."""
        self._error = error

    def close(self) -> None:
        """The windows are about to be freed: :meth:`poll` does nothing any more."""
        with self._turn:
            self.fail(WorldError("the World of these rounds was closed"))

    def _mark(self) -> None:
        """Phase 1. A cell holds 2 (R + 1) for contributions pending in round R, one more for none now and later."""
        cell = 2 * (self._round + 1) + (not self._filled)
        self._board.flush()  # the last mark has arrived: its buffer is mine again
        self._difference.fill_(cell - self._cells[self._initiator])
        self._board.push(self._difference, self._initiator, self._rank)
        self._cells[self._initiator] = cell
        self._marked = True

    def _may_start(self) -> bool:
        cells = self._board.local.numpy()
        ready = cells == 2 * (self._round + 1)
        present = ready | self._gone | (cells == 2 * (self._round + 1) + 1)
        if present.all():
            return True
        if self._quorum.initiator and not present[self._rank]:
            return False
        overdue = self._missed >= self._bound
        return bool(np.count_nonzero(ready) >= self._quorum.ready and present[overdue].all())

    def _activate(self) -> None:
        """Phase 2."""
        self._activated = True
        self._activations.flush()
        for rank in range(self._size):
            self._activations.push(self._one, rank)

    def _join(self) -> None:
        """Phase 3."""
        with self._messages:
            taken, self._filled = self._filled, []
            self._travelling, *others = taken or [self._take_spare()]
            self._table[:] = 0
            self._table[0, self._rank], self._table[1, self._rank] = len(taken), self._left
        for number, total in enumerate(self._travelling):
            if not taken:
                total.zero_()
            for messages in others:  # added up here, in the driver's time: the rank computes meanwhile
                total.add_(messages[number])
        with self._messages:
            for messages in others:
                self._put_back(messages)
        known = self._channel.iallreduce(self._known)
        self._stages = self._reduce(self._channel, self._travelling)
        self._requests = [known, *next(self._stages)]

    def _advance(self) -> None:
        """A stage of the sums is complete: the next, if there is one, or phase 4."""
        self._requests = next(self._stages, ())
        if not self._requests:
            self._complete()

    def _complete(self) -> None:
        """Phase 4."""
        counts = self._known[0].clone()
        contributors = self._table[0] > 0
        self._missed = np.where(contributors, 0, self._missed + 1)
        self._gone = self._table[1] > 0
        with self._messages:
            self._pending -= int(self._table[0, self._rank])
            if contributors.any():
                self._arrived.append(Round(self._travelling, counts))
            else:
                self._put_back(self._travelling)
            self._ended = bool(self._gone.all())
        self._round += 1
        self._draw()

    def _draw(self) -> None:
        """The initiator of the round that comes next, the same on every rank."""
        self._marked = self._activated = False
        candidates = np.flatnonzero(~self._gone)
        if len(candidates):
            self._initiator = int(candidates[self._random.randrange(len(candidates))])

    def _take_spare(self) -> list[Tensor]:
        if self._spare:
            return self._spare.pop()
        return [torch.empty(length, dtype=dtype) for length, dtype in self._layout]

    def _put_back(self, messages: list[Tensor]) -> None:
        if messages[0].data_ptr() in self._kept:
            self._spare.append(messages)
        else:
            self._spare.appendleft(messages)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


def _sums(channel: World, messages: Sequence[Tensor]) -> Stages:
    yield [channel.iallreduce(message) for message in messages]
