"""What all ranks know of the updates so far, in windows of rank 0, and the right to change it, one rank at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hpcasync.staleness import Ledger
from hpcasync.world import World


class Board:
    """A :class:`Ledger` that the ranks share, and a token: one rank at a time is attended to, as by a server.

    Taking the token out of its cell is an atomic take, so no rank has to serve it. Ranks that read the version without
    the token see an update only when it is complete.

    Cells of rank 0's windows, n = world.size:

        token     [1 while nobody has it]
        version   [updates made]
        ranks     [active_0 .. active_{n-1}, count_0 .. count_{n-1}]
        growths   [growth_0 .. growth_{n-1}]
    """

    def __init__(self, world: World) -> None:
        self.world = world
        cells = 1 if world.rank == 0 else 0
        self._token = world.window(cells, torch.int64)
        self._version = world.window(cells, torch.int64)
        self._ranks = world.window(cells * 2 * world.size, torch.int64)
        self._growths = world.window(cells * world.size, torch.float64)
        self._token.local.fill_(1)
        self._ranks.local[: world.size] = 1
        self._one, self._cell = torch.ones(1, dtype=torch.int64), torch.empty(1, dtype=torch.int64)
        self._growth = torch.empty(1, dtype=torch.float64)

    @contextmanager
    def attention(self) -> Iterator[None]:
        """Hold the token."""
        self.world.wait_until(self._has_token)
        yield
        self._token.push(self._one, 0)
        self._token.flush()

    def version(self) -> int:
        """Updates made. May be called in a condition of ``wait_until``."""
        self._version.pull(self._cell, 0)
        self._version.flush()
        return int(self._cell)

    def read(self, growths: bool = False) -> Ledger:
        """The ledger; without its growths if these are not asked for. With the token."""
        n = self.world.size
        table, all_growths = torch.empty(2 * n, dtype=torch.int64), torch.zeros(n if growths else 0).double()
        self._version.pull(self._cell, 0)
        self._ranks.pull(table, 0)
        if growths:
            self._growths.pull(all_growths, 0)
            self._growths.flush()
        self._version.flush()
        self._ranks.flush()
        return Ledger(int(self._cell), table[:n], table[n:], all_growths)

    def all_in(self) -> bool:
        """True if every active rank's contribution waits. May be called in a condition of ``wait_until``."""
        table, n = torch.empty(2 * self.world.size, dtype=torch.int64), self.world.size
        self._ranks.pull(table, 0)
        self._ranks.flush()
        return bool((table[n:] >= table[:n]).all())

    def add_counts(self, change: Tensor) -> None:
        """Change how many contributions of each rank wait, by ``change`` (n,). With the token."""
        self._ranks.push(change, 0, self.world.size)
        self._ranks.flush()

    def count(self) -> None:
        """One more contribution of mine waits for its update. With the token."""
        self._ranks.push(self._one, 0, self.world.size + self.world.rank)
        self._ranks.flush()

    def updated(self) -> None:
        """An update is complete. With the token."""
        self._version.push(self._one, 0)
        self._version.flush()

    def set_active(self, active: bool) -> None:
        """This rank makes steps, or has made its last one. With the token."""
        cell = torch.tensor([1 if active else -1])
        self._ranks.push(cell, 0, self.world.rank)
        self._ranks.flush()

    def set_growth(self, growth: float) -> None:
        """With the token."""
        self._growths.take(self._growth, 0, self.world.rank)
        self._growths.flush()
        self._growth.fill_(growth)
        self._growths.push(self._growth, 0, self.world.rank)
        self._growths.flush()

    def tensors(self) -> list[Tensor]:
        """This rank's part, to be kept for a checkpoint while nobody is attended to."""
        return [self._version.local, self._ranks.local, self._growths.local]

    def _has_token(self) -> bool:
        self._token.take(self._cell, 0)
        self._token.flush()
        return bool(self._cell)


class ShardVersions:
    """How many updates have arrived at every shard, counted beside it by whoever makes one."""

    def __init__(self, world: World, owners: int) -> None:
        self._window = world.window(1, torch.int64)
        self._seen = torch.zeros(owners, dtype=torch.int64)
        self._one = torch.ones(1, dtype=torch.int64)

    @property
    def mine(self) -> Tensor:
        """(1,) of my shard, the memory itself."""
        return self._window.local

    def count(self) -> None:
        """An update has been pushed to all shards."""
        for owner in range(len(self._seen)):
            self._window.push(self._one, owner)
        self._window.flush()

    def skew(self) -> int:
        """How many more updates have arrived at one shard than at another."""
        for owner in range(len(self._seen)):
            self._window.pull(self._seen[owner : owner + 1], owner)
        self._window.flush()
        return int(self._seen.max() - self._seen.min())
