"""What a rank may ask of the other ranks. Protocols only: no MPI, no threads, no clock of our own.

Three kinds of World implement these: ``hpcasync.mpi`` (real ranks), ``hpcasync.sim`` (simulated ranks on a virtual
clock) and ``hpcasync.horovod``. Wrappers such as ``hpcasync.faults`` stand around one and are a World themselves.

Rules every World keeps:

* A buffer handed to :meth:`World.iallreduce`, :meth:`Window.push`, :meth:`Window.pull` or :meth:`Window.take` is the
  World's until the request is waited for, or until :meth:`Window.flush`. SimWorld fills it with NaN meanwhile.
* Collective verbs (``allreduce``, ``iallreduce``, ``broadcast``, ``barrier``, ``window``, ``shared``) are called by
  every rank in the same order. Everything else may be called by any rank at any time.
* A verb that cannot complete because a peer has died raises :class:`RankFailed` in bounded time; it never hangs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


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

    def flush(self) -> None:
        """Return when every push, pull and take of mine is complete, at the target too."""
        ...

    def free(self) -> None:
        """Collective. Give the memory back."""
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

    def buffer(self, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Collective. (length,) zeros in memory that :meth:`allreduce` and :meth:`iallreduce` are fastest with."""
        ...

    def allreduce(self, buffer: Tensor) -> None:
        """Sum ``buffer`` over the ranks, in place. Any float or integer dtype; half types are summed in float32."""
        ...

    def iallreduce(self, buffer: Tensor) -> Request:
        """Begin :meth:`allreduce`; the buffer is the World's until the request's ``wait()`` returns."""
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


def split(length: int, size: int) -> list[tuple[int, int]]:
    """[start, stop) of each of ``size`` shards of ``length`` elements; the first ``length % size`` are one longer."""
    base, extra = divmod(length, size)
    starts = [rank * base + min(rank, extra) for rank in range(size + 1)]
    return list(itertools.pairwise(starts))
