"""A vector that no rank holds whole: ranks own shards of it, in a window."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcasync.world import World, split

PIECE_ELEMENTS = 1 << 16  # of three vectors of float32: 768 kB, which a core's cache holds
SHARD_ELEMENTS = 16  # a cache line of float32: less is not worth a message


def shards(length: int, ranks: int) -> list[tuple[int, int]]:
    """[start, stop) of every owner's shard; the owners are the first ranks, or all if the vector is long enough."""
    return split(length, max(1, min(ranks, length // SHARD_ELEMENTS)))


def shard_of(rank: int, owned: list[tuple[int, int]]) -> tuple[int, int]:
    """[start, stop) of the shard of ``rank``, empty if it owns none."""
    return owned[rank] if rank < len(owned) else (0, 0)


class Sharded:
    """A vector (n,) that all ranks read and add to, sharded over the windows of as many of them as it has use for.

    Args:
        values: (n,) what it begins with, the same on every rank.
    """

    def __init__(self, world: World, values: Tensor) -> None:
        owned = shards(values.numel(), world.size)
        start, stop = shard_of(world.rank, owned)
        self.window = world.window(stop - start, values.dtype)
        self.window.local.copy_(values[start:stop])
        first = world.rank % len(owned)  # an owner begins with its own, so not all queue up at the same
        numbered = list(enumerate(owned))
        self._in_turn = numbered[first:] + numbered[:first]  # [(owner, (start, stop)), ...]
        self._near = [each for each in self._in_turn if self.window.near(each[0])]
        self._far = [each for each in self._in_turn if not self.window.near(each[0])]

    @property
    def shard(self) -> Tensor:
        """This rank's shard, the memory itself."""
        return self.window.local

    def push(self, update: Tensor) -> None:
        """Add ``update`` (n,), which is the World's until ``window.flush()``."""
        for owner, (start, stop) in self._in_turn:
            self.window.push(update[start:stop], owner)

    def pull(self, target: Tensor) -> None:
        """Read all of it into ``target`` (n,)."""
        for owner, (start, stop) in self._in_turn:
            self.window.pull(target[start:stop], owner)
        self.window.flush()

    def take(self, target: Tensor) -> None:
        """Read all of it into ``target`` (n,), and leave zeros."""
        for owner, (start, stop) in self._in_turn:
            self.window.take(target[start:stop], owner)
        self.window.flush()

    def exchange(self, values: Tensor, anchor: Tensor) -> None:
        """Add ``values - anchor`` (n,), then read all of it into both: a push and a pull in one passage of memory.

        What lies on this node goes through the cache piece by piece, while what goes to the others travels.
        """
        for owner, (start, stop) in self._far:
            torch.sub(values[start:stop], anchor[start:stop], out=anchor[start:stop])
            self.window.push(anchor[start:stop], owner)
        for owner, (start, stop) in self._near:
            self._exchange_near(owner, values[start:stop], anchor[start:stop])
        self.window.flush()
        for owner, (start, stop) in self._far:
            self.window.pull(anchor[start:stop], owner)
        self.window.flush()
        for _, (start, stop) in self._far:
            values[start:stop].copy_(anchor[start:stop])

    def _exchange_near(self, owner: int, values: Tensor, anchor: Tensor) -> None:
        pieces = zip(torch.split(values, PIECE_ELEMENTS), torch.split(anchor, PIECE_ELEMENTS), strict=True)
        for i, (value, known) in enumerate(pieces):
            torch.sub(value, known, out=known)
            self.window.push(known, owner, i * PIECE_ELEMENTS)
            self.window.pull(known, owner, i * PIECE_ELEMENTS)
            value.copy_(known)
