"""What a rank may ask of the other ranks. Protocols only: no MPI, no threads, no clock of our own.

Three kinds of World implement these: ``hpcasync.mpi`` (real ranks), ``hpcasync.sim`` (simulated ranks on a virtual
clock) and ``hpcasync.horovod``. Wrappers such as ``hpcasync.faults`` stand around one and are a World themselves.

Rules every World keeps:

* A buffer handed to :meth:`World.iallreduce`, :meth:`World.ialltoall`, :meth:`World.iallgather`, :meth:`Window.push`,
  :meth:`Window.pull` or :meth:`Window.take` is the World's until the request is waited for, or until
  :meth:`Window.flush`. SimWorld fills it with NaN meanwhile.
* Collective verbs (``buffer``, ``allreduce``, ``iallreduce``, ``ialltoall``, ``iallgather``, ``partial``,
  ``broadcast``, ``barrier``, ``window``, ``shared``) are called by every rank in the same order. Everything else may be
  called by any rank at any time.
* A verb that cannot complete because a peer has died raises :class:`RankFailed` in bounded time; it never hangs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hpcasync.errors import UsageError

HALF_TYPES = frozenset({torch.float16, torch.bfloat16})
"""What is added up in float32: neither NumPy nor MPI can."""


class WorldError(Exception):
    """The ranks cannot go on together."""


class RankFailed(WorldError):
    """A peer has died. ``ranks`` are the dead known so far, in this World's numbering; there may be more."""

    def __init__(self, ranks: tuple[int, ...] = ()) -> None:
        self.ranks = ranks
        super().__init__(f"rank {', '.join(map(str, ranks)) or 'unknown'} has failed")


class Deadlock(WorldError):
    """SimWorld only: every simulated rank waits for something that nobody is left to do."""


@dataclass(frozen=True)
class Node:
    """The ranks that share this rank's memory: my place among them, how many, and the world rank of the first."""

    rank: int
    size: int
    leader: int


class Request(Protocol):
    """A collective in flight."""

    def test(self) -> bool:
        """True once the buffer is mine again. Never blocks."""
        ...

    def wait(self) -> None:
        """Return when the buffer is mine again."""
        ...


Stages = Iterator[Sequence[Request]]
"""A reduction of several stages: each ``next`` begins one, to be called when the requests of the last are complete."""


class Window(Protocol):
    """Memory of a rank that the others reach without its help.

    ``local`` is my own part, shape (n,), a view of the memory itself and never a copy. The parts may have different
    lengths; ``offset`` counts elements in the target's part. A push is atomic per element: pushes that overlap all
    count. A pull beside a push may read some elements from before it and some from after.
    """

    @property
    def local(self) -> Tensor: ...

    def push(self, source: Tensor, rank: int, offset: int = 0) -> None:
        """Add ``source`` (m,) into ``rank``'s elements [offset, offset + m)."""
        ...

    def pull(self, target: Tensor, rank: int, offset: int = 0) -> None:
        """Read ``rank``'s elements [offset, offset + m) into ``target`` (m,)."""
        ...

    def take(self, target: Tensor, rank: int, offset: int = 0) -> None:
        """Read into ``target`` (m,) and leave zeros behind, atomically per element: nothing is lost or read twice."""
        ...

    def near(self, rank: int) -> bool:
        """True if a push, pull or take of ``rank``'s part is complete when it returns: my node shares that memory."""
        ...

    def test(self) -> bool:
        """True if every push, pull and take of mine is complete, so that :meth:`flush` would return at once."""
        ...

    def flush(self) -> None:
        """Return when every push, pull and take of mine is complete, at the target too."""
        ...

    def free(self) -> None:
        """Collective. Give the memory back."""
        ...


@dataclass(frozen=True)
class Quorum:
    """Who must be ready before a round of a partial allreduce starts: ``ready`` ranks, whichever, or all there are.

    With ``initiator`` the round waits for one rank besides, drawn at random. It comes at a random place in the order
    in which the ranks become ready, so half of them or more contribute on average.
    """

    ready: int = 1
    initiator: bool = False

    @classmethod
    def parse(cls, text: str) -> Quorum:
        """The quorum called "solo" (any one rank), "majority" (a random initiator), or a number of ranks.

        Raises:
            UsageError: something else.
        """
        if text == "majority":
            return cls(initiator=True)
        if text == "solo":
            return cls()
        if not (text.isascii() and text.isdigit() and int(text)):
            raise UsageError(f"quorum={text}: it is solo, majority, or a number of ranks from 1 on")
        return cls(int(text))


@dataclass(frozen=True)
class Round:
    """A round of a partial allreduce that is complete. Every rank gets the same rounds in the same order.

    Attributes:
        messages: the sums over the ranks. They are the World's again at the next :meth:`Partial.arrived`; until then
            their reader may overwrite them.
        counts: (size,) int64, how many contributions of each rank are in the sums.
    """

    messages: Sequence[Tensor]
    counts: Tensor


class Partial(Protocol):
    """Sums over the ranks that wait for nobody but a quorum: a rank that is not ready adds what it has, or nothing.

    A rank's contributions add up until a round takes them; each is in exactly one round. A rank that has missed
    ``bound`` rounds in a row makes the next one wait for it. Every method raises what has ended the rounds: RankFailed
    when a peer has died.
    """

    @property
    def pending(self) -> int:
        """How many contributions of mine are in none of the rounds that have arrived."""
        ...

    @property
    def has_arrived(self) -> bool:
        """True if :meth:`arrived` has a round to give."""
        ...

    @property
    def over(self) -> bool:
        """True when all ranks have left, everything contributed is in a round, and I have been given all rounds."""
        ...

    def unused(self) -> list[Tensor]:
        """Messages to fill, in memory that rounds are fastest with: whatever they hold is of no use."""
        ...

    def contribute(self, messages: Sequence[Tensor]) -> list[Tensor]:
        """Hand in ``messages``. Returns at once, with :meth:`unused` ones."""
        ...

    def reduce_by(self, reduce: Reduce) -> None:
        """Collective, before the first :meth:`contribute`: have the messages reduced like this, not just added up."""
        ...

    def arrived(self) -> Round | None:
        """The next round, or None if no other is complete yet. Never blocks."""
        ...

    def leave(self) -> None:
        """I contribute no more, and nobody waits for me; I still take part in the rounds until :attr:`over`."""
        ...

    def rejoin(self) -> None:
        """Collective, when :attr:`over`: begin anew as if nothing had happened."""
        ...


class World(Protocol):
    """What a rank may ask of the others. ``waited`` is the seconds this rank has spent blocked in verbs so far."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def node(self) -> Node: ...
    @property
    def waited(self) -> float: ...

    @property
    def can_wait_in_backward(self) -> bool:
        """True if verbs that wait may be called in a hook of backward().

        Several simulated ranks cannot: they share a thread, and autograd keeps one queue of work per thread.
        """
        ...

    def buffer(self, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Collective. (length,) zeros in memory that :meth:`allreduce` and :meth:`iallreduce` are fastest with."""
        ...

    def allreduce(self, buffer: Tensor) -> None:
        """Sum ``buffer`` over the ranks, in place. Any float or integer dtype; half types are summed in float32."""
        ...

    def iallreduce(self, buffer: Tensor) -> Request:
        """Begin :meth:`allreduce`; the buffer is the World's until the request's ``wait()`` returns."""
        ...

    def ialltoall(self, source: Tensor, target: Tensor) -> Request:
        """Begin to send the r-th of ``size`` equal slices of ``source`` to rank r, for all r.

        ``target``, as long as ``source``, gets what the ranks send to this one, in the order of the ranks. Any dtype.
        Both buffers are the World's until the request's ``wait()`` returns; ``source`` then is what it was.
        """
        ...

    def iallgather(self, source: Tensor, target: Tensor) -> Request:
        """Begin to send ``source`` (m,) to all ranks; ``target`` (size · m,) gets what each rank sends.

        Otherwise as :meth:`ialltoall`.
        """
        ...

    def partial(self, like: Sequence[Tensor], quorum: Quorum, bound: int) -> Partial:
        """Collective. Partial allreduces of messages with the lengths and dtypes of those in ``like``.

        Raises:
            UsageError: a quorum of more ranks than there are, or a negative bound.
        """
        ...

    def broadcast(self, buffer: Tensor, root: int = 0) -> None:
        """Overwrite ``buffer`` with ``root``'s."""
        ...

    def barrier(self) -> None:
        """Return when every rank has come here."""
        ...

    def window(self, length: int, dtype: torch.dtype = torch.float32) -> Window:
        """Collective. A window whose part on this rank has ``length`` zeros; ranks may ask for different lengths."""
        ...

    def shared(self, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Collective. One (length,) vector of zeros per node, the same memory for all of its ranks."""
        ...

    def leaders(self) -> World | None:
        """Collective. The World of the nodes' first ranks, on those; None on the others."""
        ...

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when ``condition()`` is true; the peers' requests make progress meanwhile."""
        ...

    def computed(self, seconds: float) -> None:
        """Tell the World that this rank has just computed for ``seconds``, once per step, before ``strategy.step()``.

        MPIWorld uses it as a point of progress, ``hpcasync.faults`` sleeps here to slow a rank down, and SimWorld lets
        its virtual clock run by a draw from the compute law (and ignores the argument).
        """
        ...

    def now(self) -> float:
        """Seconds on a clock that never goes back: the wall's, or SimWorld's virtual one."""
        ...

    def shrink(self) -> World:
        """After RankFailed, called by every survivor: the World of the survivors, ranks renumbered in order."""
        ...

    def close(self) -> None:
        """Collective. The last call: threads end, memory is given back."""
        ...


Reduce = Callable[[World, Sequence[Tensor]], Stages]
"""Makes of one message per dtype and rank the same on every rank, in place; all ranks call it in the same order."""


def split(length: int, size: int) -> list[tuple[int, int]]:
    """[start, stop) of each of ``size`` shards of ``length`` elements; the first ``length % size`` are one longer."""
    base, extra = divmod(length, size)
    starts = [rank * base + min(rank, extra) for rank in range(size + 1)]
    return list(itertools.pairwise(starts))
