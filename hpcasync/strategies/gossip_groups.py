"""Averaging in small groups that change from step to step, so that everyone soon reaches everyone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from hpcasync import topology
from hpcasync.clock import Clock
from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.strategies.gossip import Sgp
from hpcasync.world import World


class Wagma(Sgp):
    """Wait-avoiding group model averaging: shares of the parameters go to all others of this step's group.

        x_r <- optimizer(x_r, g_r(z_r)),   (x_r, w_r) <- (x_r, w_r) / S, and as much to each of S - 1 others
        (x_r, w_r) <- (x_r, w_r) + Σ arrived (x, w),   z_r = x_r / w_r

    Li, Ben-Nun, Nadiradze, Di Girolamo, Dryden, Alistarh, Hoefler, "Breaking (Global) Barriers in Parallel Stochastic
    Optimization with Wait-Avoiding Group Averaging", 2020 (WAGMA-SGD, https://arxiv.org/abs/2005.00124). The groups
    rotate as there (:func:`hpcasync.topology.group`): with everyone in step, log n / log S steps make the exact mean of
    all if n is a power of S. There whoever is late has its stale parameters taken by a group allreduce that the first
    member starts, and every tau steps all ranks wait for all. Here a late rank's group goes on without it and leaves
    shares in its inbox, as in ``sgp``, so no parameters are counted twice or forgotten; and a rank waits while the
    slowest is more than ``bound`` steps behind, so nobody ever waits for a rank that is less late than that.

    Args:
        members: the size of a group; 0 is the square root of n, rounded up to a power of 2, as in the paper.
        bound: how many steps the slowest rank may be behind; 0 is lockstep, inf never waits.

    Raises:
        UsageError: a group of 1 or of less than 0, or a negative bound.
    """

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        members: int = 0,
        bound: float = 10,
    ) -> None:
        if members < 0 or members == 1:
            raise UsageError(f"members={members}: it is the size of a group, so 2 or more, or 0 for sqrt(n)")
        self.members = members or max(2, 1 << math.ceil(math.log2(world.size) / 2))
        self._clock = Clock(world, bound)
        super().__init__(replica, world, optimizer, bound=2 * (self.members - 1))

    def _step(self) -> None:
        super()._step()
        self._clock.advance()
        self._clock.gate()

    def drain(self) -> None:
        self._clock.leave()
        super().drain()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._clock.restore(int(state["steps"]))
        super().load_state_dict(state)

    def _peers(self) -> tuple[int, ...]:
        return topology.group(self.world.rank, self.world.size, self._steps, self.members)
