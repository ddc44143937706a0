"""Asynchronous local SGD: a rank trains by itself for a while, tells where it has gone, and waits for nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.strategies.outer import Roaming
from hpcasync.world import World


class DelayedNesterov(Roaming):
    """Asynchronous local SGD with delayed Nesterov momentum outside.

        every step:                x_r <- optimizer(x_r, g_r(x_r))
        every ``period`` of them:  Delta = anchor_r - x_r,   center <- outer(center, Delta),   x_r, anchor_r <- center
        outer:                     center <- center - outer_lr (Delta / N + c beta m), and every N-th time
                                   m <- beta m + mean of the last N Delta, and (1 - c N + c) in place of c

    Liu et al., "Asynchronous Local-SGD Training for Language Modeling", 2024, alg. 2 and 3
    (https://arxiv.org/abs/2401.09135), with Nesterov's beta as ``outer_momentum``; see :class:`outer.Outer`. With N = 1
    and c = 0, one rank, it is Nesterov's method on the ways gone. A rank waits for what it sends and reads, never for
    another rank; what runs deliver is the center.

    Args:
        period: steps between two exchanges (H).
        outer_lr, outer_momentum: of the outer optimizer.
        every: N, updates per use of the momentum; 0 is the number of ranks.
        c: the share of the momentum that the updates between have, at most 1 / N.

    Raises:
        UsageError: a period below 1, a negative N, an outer_lr that is not above 0, or an outer_momentum or a c out of
            range.
    """

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        period: int = 50,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        every: int = 0,
        c: float = 0.0,
    ) -> None:
        every = every or world.size
        if every < 1:
            raise UsageError(f"every={every}: it counts updates, so 1 or more, or 0 for one per rank")
        if not 0 <= c <= 1 / every:
            raise UsageError(f"c={c}: it is a share of the momentum, from 0 to 1 / {every}")
        super().__init__(replica, world, optimizer, period, outer_lr, outer_momentum, every, c)
        world.barrier()

    def _step(self) -> None:
        self._update_own()
        self.replica.zero_grads()
        self._since += 1
        if self._since >= self._steps_now():
            self._exchange()

    def drain(self) -> None:
        if self._since:
            self._exchange()
        self.world.barrier()
        self._take_on()

    def _steps_now(self) -> int:
        """The steps that this rank makes before its next exchange."""
        return self.period

    def _exchange(self) -> None:
        for anchor, pair in zip(self._anchors, self.replica.pairs, strict=True):
            anchor.sub_(pair.params)
        self.staleness.record(self._outer.update(self._anchors) - self._read)
        self._take_on()
        self._since = 0

    def _take_on(self) -> None:
        """Go on from the center."""
        self._read = self._outer.pull(self._anchors)
        self._go_on()


class DynamicLocal(DelayedNesterov):
    """Delayed Nesterov with dynamic local updates: slower ranks make fewer steps between two exchanges.

        H_r = max(1, round(period · v_r / max_s v_s)),   v_r: steps per second of r since its last exchange

    Liu et al. 2024, sec. 4.2 (DyLU, https://arxiv.org/abs/2401.09135), rounded there to below. So all exchange about
    as often, and what a slow rank brings is as stale as what the others do. See ``delayed_nesterov``.

    Args:
        period: steps between two exchanges of the fastest rank.
        outer_lr, outer_momentum, every, c: as of ``delayed_nesterov``.
    """

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        period: int = 50,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        every: int = 0,
        c: float = 0.0,
    ) -> None:
        super().__init__(replica, world, optimizer, period, outer_lr, outer_momentum, every, c)
        self._speeds = world.window(1, torch.float64)  # steps per second, 0 while not known
        self._known = torch.zeros(world.size, dtype=torch.float64)
        self._steps_due = period
        self._began = world.now()
        world.barrier()

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "speed": float(self._speeds.local),
            "steps_due": self._steps_due,
            "seconds": self.world.now() - self._began,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._speeds.local.fill_(float(state["speed"]))
        self._steps_due = int(state["steps_due"])
        super().load_state_dict(state)
        self._began = self.world.now() - float(state["seconds"])

    def _steps_now(self) -> int:
        return self._steps_due

    def _exchange(self) -> None:
        seconds = self.world.now() - self._began
        if seconds > 0:
            self._speeds.local.fill_(self._since / seconds)
        super()._exchange()
        for rank in range(self.world.size):
            self._speeds.pull(self._known[rank : rank + 1], rank)
        self._speeds.flush()
        fastest = float(self._known.max())
        share = float(self._speeds.local) / fastest if fastest else 1.0
        self._steps_due = max(1, round(self.period * share))
        self._began = self.world.now()
