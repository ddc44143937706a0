"""A parameter server without servers: the parameters are sharded over the windows of the ranks that train."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpcasync.clock import Clock
from hpcasync.errors import UsageError
from hpcasync.replica import Pair, Replica
from hpcasync.strategies.strategy import Strategy
from hpcasync.world import Window, World, split


class _Center:
    """One dtype's central parameters, shard by shard in the ranks' windows, and what this rank last knew of them."""

    def __init__(self, pair: Pair, world: World) -> None:
        self.pair = pair
        self.shards = split(pair.params.numel(), world.size)
        start, stop = self.shards[world.rank]
        self.window: Window = world.window(stop - start, pair.params.dtype)
        self.window.local.copy_(pair.params[start:stop])
        self.anchor = pair.params.detach().clone()  # this rank's parameters, less what it has not pushed yet
        self.update = torch.empty_like(self.anchor)

    def push(self) -> None:
        """Add what this rank's optimizer has done since the last push into the shards. The caller flushes."""
        torch.sub(self.pair.params, self.anchor, out=self.update)
        for owner, (start, stop) in enumerate(self.shards):
            self.window.push(self.update[start:stop], owner)
        self.anchor.copy_(self.pair.params)

    def pull(self, target: Tensor) -> None:
        """Read all shards into ``target`` (n,)."""
        for owner, (start, stop) in enumerate(self.shards):
            self.window.pull(target[start:stop], owner)
        self.window.flush()


class Downpour(Strategy):
    """Downpour SGD with the ranks themselves as the parameter server.

        every ``push`` steps:   center <- center + (x_r - anchor_r),   anchor_r <- x_r
        every ``pull`` steps:   x_r <- center + (x_r - anchor_r),      anchor_r <- center
        every step:             x_r <- optimizer(x_r, g_r(x_r))

    Dean et al., "Large Scale Distributed Deep Networks", NeurIPS 2012, sec. 4.1 (n_push, n_fetch), with the clock gate
    of Ho et al. 2013 (see ``hpcasync.clock``). Updates are pushed, not gradients, so any optimizer serves. Concurrent
    pushes add up, so no update is lost. With push = pull = 1, n equal ranks see a staleness of n - 1.

    Args:
        push: steps between two pushes.
        pull: steps between two pulls.
        bound: how many steps the slowest rank may be behind (SSP); inf never waits.
    """

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        push: int = 1,
        pull: int = 1,
        bound: float = math.inf,
    ) -> None:
        for name, period in (("push", push), ("pull", pull)):
            if period < 1:
                raise UsageError(f"{name}={period}: it is a period in steps, so 1 or more")
        super().__init__(replica, world, optimizer)
        self.push, self.pull = push, pull
        self.clock = Clock(world, bound)
        self._centers = [_Center(pair, world) for pair in replica.pairs]
        self._versions = world.window(1, torch.int64)  # pushes that have arrived at my shard; all shards see all pushes
        self._one = torch.ones(1, dtype=torch.int64)
        self._read = self._pushed_since_read = self._unpushed = 0
        world.barrier()

    def step(self) -> None:
        self.replica.adopt_strays()
        self.optimizer.step()
        self.replica.zero_grads()
        self._unpushed += 1
        steps = self.clock.steps + 1
        if steps % self.push == 0:
            self._push()
        self.clock.advance()
        self.clock.gate()
        if steps % self.pull == 0:
            self._pull()

    def drain(self) -> None:
        if self._unpushed:
            self._push()
        self.clock.leave()
        self.world.barrier()
        self._pull()

    def parameters(self) -> list[Tensor]:
        if self._alone:
            return super().parameters()
        centers = [torch.empty_like(center.anchor) for center in self._centers]
        for center, target in zip(self._centers, centers, strict=True):
            center.pull(target)
        return centers

    def state_dict(self) -> dict[str, Any]:
        self.world.barrier()  # all pushes have arrived
        shards = [center.window.local.clone() for center in self._centers]
        return {
            **super().state_dict(),
            "shards": shards,
            "anchors": [center.anchor.clone() for center in self._centers],
            "steps": self.clock.steps,
            "version": int(self._versions.local),
            "read": self._read,
            "pushed_since_read": self._pushed_since_read,
            "unpushed": self._unpushed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for center, shard, anchor in zip(self._centers, state["shards"], state["anchors"], strict=True):
            center.window.local.copy_(shard)
            center.anchor.copy_(anchor)
        self.clock.restore(int(state["steps"]))
        self._versions.local.fill_(int(state["version"]))
        self._read = int(state["read"])
        self._pushed_since_read = int(state["pushed_since_read"])
        self._unpushed = int(state["unpushed"])
        super().load_state_dict(state)

    @property
    def _alone(self) -> bool:
        """A rank alone trains on its own parameters, and x + (y - x) need not be y in floating point."""
        return self.world.size == 1

    def _push(self) -> None:
        self.staleness.record(int(self._versions.local) - self._read - self._pushed_since_read)
        if not self._alone:
            for center in self._centers:
                center.push()
            for owner in range(self.world.size):
                self._versions.push(self._one, owner)
            for center in self._centers:
                center.window.flush()
            self._versions.flush()
            self._pushed_since_read += 1
        self._unpushed = 0

    def _pull(self) -> None:
        if self._alone:
            return
        self._read = int(self._versions.local)
        self._pushed_since_read = 0
        for center in self._centers:
            params = center.pair.params
            if self._unpushed:
                center.pull(center.update)
                params.add_(center.update.sub(center.anchor))
                center.anchor.copy_(center.update)
            else:  # by way of the anchor: a death during the pull leaves the parameters whole
                center.pull(center.anchor)
                params.copy_(center.anchor)
