"""Parameters that ranks update one-sidedly with the ways they have gone: the outer level of asynchronous local SGD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.strategies.sharded import Sharded
from hpcasync.strategies.strategy import Strategy
from hpcasync.strategies.tally import Tally
from hpcasync.world import World


class Outer:
    """Central parameters (n_i,) under delayed Nesterov momentum, sharded over the ranks' windows.

        each update by a way Delta:   center <- center - lr (Delta / N + c beta m)
        but every N-th of them:       m <- beta m + (Σ of the N Delta) / N
                                      center <- center - lr (Delta / N + (1 - c N + c) beta m)

    Liu et al., "Asynchronous Local-SGD Training for Language Modeling", 2024, alg. 3 (https://arxiv.org/abs/2401.09135).
    Momentum makes stale ways worse, so it is used once in N updates only. With N = 1 and c = 0 this is Nesterov.

    There is no server: whoever updates is the server. It adds its way to a buffer, and whoever finds N ways or more in
    there (:class:`tally.Tally`) makes the momentum of all of them. Takes are atomic per element, so a way that is added
    meanwhile is in this momentum or in the next, never in both or in none.
    """

    def __init__(
        self, world: World, values: Sequence[Tensor], lr: float, momentum: float, every: int, c: float
    ) -> None:
        self.lr, self.momentum, self.every, self.c = lr, momentum, every, c
        self._centers = [Sharded(world, each) for each in values]
        zeros = [torch.zeros_like(each) for each in values] if momentum else []
        self._buffers, self._momenta = ([Sharded(world, each) for each in zeros] for _ in range(2))
        self._scratch = [(torch.empty_like(each), torch.empty_like(each)) for each in zeros]
        self._tally = Tally(world, keeper=0)

    def pull(self, targets: Sequence[Tensor]) -> int:
        """Read the parameters into ``targets`` [(n_i,), ...]; how many updates had been made when that began."""
        updates = self._tally.so_far()
        for center, target in zip(self._centers, targets, strict=True):
            center.pull(target)
        return updates

    def update(self, ways: Sequence[Tensor]) -> int:
        """Go ``ways`` [(n_i,), ...], which are overwritten; how many updates had been made before."""
        for buffer, way in zip(self._buffers, ways, strict=False):
            buffer.push(way)
            buffer.window.flush()
        before = self._tally.so_far()
        alpha = self._renew_momentum() if self._tally.arrive(self.every) else self._look_at_momentum()
        for number, (center, way) in enumerate(zip(self._centers, ways, strict=True)):
            way.div_(self.every)
            if alpha and self.momentum:
                way.add_(self._scratch[number][0], alpha=alpha * self.momentum)
            center.push(way.mul_(-self.lr))
            center.window.flush()
        return before

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs, when nothing is in flight."""
        return {"shards": [part.shard.clone() for part in self._parts()], "tally": self._tally.local.clone()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take on a :meth:`state`, this rank's own. The caller has a barrier behind it."""
        for part, saved in zip(self._parts(), state["shards"], strict=True):
            part.shard.copy_(saved)
        self._tally.local.copy_(state["tally"])

    def _parts(self) -> list[Sharded]:
        return [*self._centers, *self._buffers, *self._momenta]

    def _renew_momentum(self) -> float:
        """Make the momentum of all ways that wait. How much of it this update has; it is in the scratch."""
        for buffer, momentum, (m, ways) in zip(self._buffers, self._momenta, self._scratch, strict=True):
            buffer.take(ways)
            momentum.pull(m)
            ways.div_(self.every).sub_(m, alpha=1 - self.momentum)  # what m grows by, so that nobody finds it gone
            momentum.push(ways)
            momentum.window.flush()
            m.add_(ways)
        self._tally.done()
        return 1 - self.c * self.every + self.c

    def _look_at_momentum(self) -> float:
        """How much of the momentum an update between has; it is in the scratch."""
        if self.c:
            for momentum, (m, _) in zip(self._momenta, self._scratch, strict=True):
                momentum.pull(m)
        return self.c


class Roaming(Strategy):
    """Every rank trains by itself, and exchanges now and then with what a run delivers: the center of an ``Outer``.

    Raises:
        UsageError: a period below 1, an outer_lr that is not above 0, or an outer_momentum out of range.
    """

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        period: int,
        outer_lr: float,
        outer_momentum: float,
        every: int,
        c: float,
    ) -> None:
        if period < 1:
            raise UsageError(f"period={period}: it counts steps, so 1 or more")
        if not outer_lr > 0:
            raise UsageError(f"outer_lr={outer_lr}: it is above 0")
        if not 0 <= outer_momentum < 1:
            raise UsageError(f"outer_momentum={outer_momentum}: it is in [0, 1)")
        super().__init__(replica, world, optimizer)
        self.period = period
        self._since = 0  # steps since the last exchange
        self._read = 0  # updates that the anchors have in them
        self._anchors = [pair.params.detach().clone() for pair in replica.pairs]
        self._outer = Outer(world, self._anchors, outer_lr, outer_momentum, every, c)

    def parameters(self) -> list[Tensor]:
        centers = [torch.empty_like(anchor) for anchor in self._anchors]
        self._outer.pull(centers)
        return centers

    def state_dict(self) -> dict[str, Any]:
        self.world.barrier()
        return {
            **super().state_dict(),
            "outer": self._outer.state(),
            "anchors": [anchor.clone() for anchor in self._anchors],
            "since": self._since,
            "read": self._read,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._outer.restore(state["outer"])
        for anchor, saved in zip(self._anchors, state["anchors"], strict=True):
            anchor.copy_(saved)
        self._since, self._read = int(state["since"]), int(state["read"])
        super().load_state_dict(state)

    def _go_on(self) -> None:
        """From the anchors."""
        for anchor, pair in zip(self._anchors, self.replica.pairs, strict=True):
            pair.params.copy_(anchor)
