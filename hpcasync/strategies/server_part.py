"""One dtype's parameters as the ranks of ``server.py`` share them, and what a rank remembers of its contributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hpcasync.replica import Pair
from hpcasync.staleness import Memory, Policy
from hpcasync.strategies.sharded import Sharded
from hpcasync.world import World


class Table:
    """Sharded: the sum of the contributions (n,) that wait for an update or, by rank, the sum of the ranks' means."""

    def __init__(self, world: World, like: Tensor, by_rank: bool) -> None:
        self.sum = Sharded(world, torch.zeros_like(like))
        self.by_rank = by_rank
        self.row = like.new_zeros(like.numel() if by_rank else 0)  # the mean of this rank's contributions

    def add(self, g: Tensor, made: int) -> None:
        """Add ``g`` (n,), or put this rank's mean of ``made`` + 1 contributions in place of its mean of ``made``.

        ``g`` is overwritten.
        """
        if self.by_rank:
            if not made:
                self.row.zero_()
            g.sub_(self.row).div_(made + 1)
            self.row.add_(g)
        self.sum.push(g)
        self.sum.window.flush()


class Part:
    """Central parameters (n,) and, where the policy collects, contributions that wait for their update; both sharded.

    What a rank remembers is allocated only if its policy reads it.
    """

    def __init__(self, pair: Pair, world: World, policy: Policy) -> None:
        self.pair, self.policy = pair, policy
        self._alone = world.size == 1  # then the parameters are the replica's: x + (y - x) need not be y
        self.center = Sharded(world, pair.params)
        self.table = Table(world, pair.params, policy.by_rank) if policy.collects else None
        self._scratch, self._update = torch.empty_like(self.pair.params), torch.empty_like(self.pair.params)
        self.memory = Memory(self._zeros(policy.decay is not None))
        self._last_g, self._last_x = (self._zeros(policy.watches_growth).fill_(math.nan) for _ in range(2))

    def now(self) -> Tensor:
        """(n,) the central parameters, until the next call of a method."""
        if self._alone:
            return self.pair.params
        self.center.pull(self._scratch)
        return self._scratch

    def mend(self, weight: float) -> None:
        """Correct and weigh the gradient, in place."""
        g, decay = self.pair.grads, self.policy.decay
        if decay is not None:
            self.memory.square.mul_(decay).addcmul_(g, g, value=1 - decay)
        if self.policy.compares:
            g.copy_(self.policy.correct(g, self.now(), self.pair.params, self.memory))
        if weight != 1:
            g.mul_(weight)

    def take_mean(self, count: int) -> None:
        """Have the optimizer see the collected sum over ``count``, until :meth:`see_own`. Nothing waits any more."""
        assert self.table is not None
        self.table.sum.take(self._scratch)
        self.pair.lend(self._scratch.div_(count))

    def see_mean(self, count: int) -> None:
        """As :meth:`take_mean`, and what is collected stays."""
        assert self.table is not None
        self.table.sum.pull(self._scratch)
        self.pair.lend(self._scratch.div_(count))

    def replace_table(self, table: Table) -> None:
        """Forget what is collected, and have what ``table`` has, which is empty then."""
        assert self.table is not None
        self.table.sum.take(self._scratch)
        table.sum.take(self._scratch)
        self.table.sum.push(self._scratch)
        self.table.sum.window.flush()

    def see_own(self) -> None:
        """Have the optimizer see this rank's gradient buffer again."""
        self.pair.take_back()

    def carry(self, change: Tensor) -> None:
        """Add ``change`` (n,) to the central parameters."""
        if not self._alone:
            self.center.push(change)
            self.center.window.flush()

    def begin_update(self) -> None:
        self._update.copy_(self.pair.params)

    def push_update(self) -> None:
        """Add what the optimizer has done since :meth:`begin_update` to the central parameters. The caller flushes."""
        torch.sub(self.pair.params, self._update, out=self._update)
        if self.policy.compares:
            size = float(self._update.norm()) / math.sqrt(len(self._update))
            self.memory.stride = 0.9 * self.memory.stride + 0.1 * size if self.memory.stride else size
        if not self._alone:
            self.center.push(self._update)

    def changes(self) -> tuple[float, float]:
        """‖g - g'‖² and ‖x - x'‖² against the call before, which is forgotten."""
        g, x = self.pair.grads, self.pair.params
        squares = float((g - self._last_g).square().sum()), float((x - self._last_x).square().sum())
        self._last_g.copy_(g)
        self._last_x.copy_(x)
        return squares

    def tensors(self) -> list[Tensor]:
        """All there is to keep for a checkpoint, but for ``memory.stride``."""
        kept = [self.center.shard, self.pair.grads, self.memory.square, self._last_g, self._last_x]
        return [*kept, self.table.sum.shard, self.table.row] if self.table else kept

    def _zeros(self, needed: bool) -> Tensor:
        return self.pair.params.new_zeros(self.pair.params.numel() if needed else 0)


def growth(parts: Sequence[Part]) -> float:
    """‖g - g'‖ / ‖x - x'‖ over all parts: 0 for a rank's first contribution, NaN for a gradient that is not finite."""
    finite = all(bool(part.pair.grads.isfinite().all()) for part in parts)
    squares = [part.changes() for part in parts]
    turned, moved = sum(g for g, _ in squares), sum(x for _, x in squares)
    if not finite:
        return math.nan
    if math.isnan(turned):
        return 0.0
    return math.sqrt(turned / moved) if moved else (math.inf if turned else 0.0)
