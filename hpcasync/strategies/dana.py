"""Momentum that knows of the others': each rank computes its gradient where the momenta of all will have led."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.replica import Pair, Replica
from hpcasync.strategies.sharded import Sharded
from hpcasync.strategies.strategy import Strategy
from hpcasync.world import World


class _Part:
    """One dtype's central parameters (n,), how far ahead of them to look, and this rank's last update."""

    def __init__(self, pair: Pair, world: World, momentum: float) -> None:
        self.pair, self._momentum = pair, momentum
        self._center = Sharded(world, pair.params)
        self._ahead = Sharded(world, torch.zeros_like(pair.params))  # momentum · Σ_r u_r
        self._last, self._update, self._turn = (torch.zeros_like(pair.params) for _ in range(3))

    @property
    def tensors(self) -> list[Tensor]:
        """All there is to keep for a checkpoint."""
        return [self._center.shard, self._ahead.shard, self._last]

    def begin_update(self) -> None:
        self._update.copy_(self.pair.params)

    def push_update(self) -> None:
        """Share what the optimizer has done since :meth:`begin_update`: u_r."""
        torch.sub(self.pair.params, self._update, out=self._update)
        torch.sub(self._update, self._last, out=self._turn).mul_(self._momentum)
        self._last.copy_(self._update)
        self._center.push(self._update)
        self._ahead.push(self._turn)
        self._flush()

    def change(self, change: Tensor) -> None:
        """Add ``change`` (n,) to the central parameters."""
        self._center.push(change)
        self._flush()

    def withdraw(self) -> None:
        """This rank makes no update any more: look ahead by the others' only."""
        torch.mul(self._last, -self._momentum, out=self._turn)
        self._ahead.push(self._turn)
        self._flush()
        self._last.zero_()

    def look_ahead(self) -> Tensor:
        """(n,) where the next gradient is to be computed, until the next call of a method."""
        self._center.pull(self._update)
        self._ahead.pull(self._turn)
        return self._update.add_(self._turn)

    def _flush(self) -> None:
        self._center.window.flush()
        self._ahead.window.flush()


class Dana(Strategy):
    """DANA: asynchronous SGD with a momentum per rank and a look-ahead over the momenta of all.

        u_r <- momentum u_r - gamma g_r(x_r)          the job's SGD with momentum
        x <- x + u_r
        x_r <- x + momentum Σ_i u_i                   where x will be when every rank has brought its next update

    Hakimi, Barkai, Gabel and Schuster, "Taming Momentum in a Distributed Asynchronous Environment", 2019, alg. 4
    (DANA-Zero, https://arxiv.org/abs/1907.11612), with u_r = -gamma v_r. A rank alone is SGD with Nesterov's momentum
    as PyTorch has it, bit for bit. Nothing is decided on, so nobody takes turns: pushes add up.

    Without momentum this is plain asynchronous SGD. What is delivered is x ahead by the momenta of the ranks that still
    make steps, as PyTorch's Nesterov delivers it too.

    Raises:
        UsageError: the optimizer is not SGD, or its momentum is not plain (nesterov or dampening), or not one.
    """

    rereads = True

    def __init__(self, replica: Replica, world: World, optimizer: torch.optim.Optimizer) -> None:
        momentum = _momentum(optimizer)
        super().__init__(replica, world, optimizer)
        for group in optimizer.param_groups:
            group["nesterov"] = world.size == 1 and momentum > 0
        self._parts = [_Part(pair, world, momentum) for pair in replica.pairs]
        self._versions = world.window(1 if world.rank == 0 else 0, torch.int64)
        self._one, self._cell = torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        self._read = 0
        world.barrier()

    def _changed(self, number: int, change: Tensor) -> None:
        if self.world.size > 1:
            self._parts[number].change(change)

    def _step(self) -> None:
        for part in self._parts:
            part.begin_update()
        self._update_own()
        self.replica.zero_grads()
        self.staleness.record(self._version() - self._read)
        if self.world.size > 1:
            for part in self._parts:
                part.push_update()
        self._versions.push(self._one, 0)
        self._versions.flush()
        self._pull()

    def drain(self) -> None:
        if self.world.size > 1:
            for part in self._parts:
                part.withdraw()
        self.world.barrier()
        self._pull()

    def parameters(self) -> list[Tensor]:
        if self.world.size == 1:
            return super().parameters()
        return [part.look_ahead().clone() for part in self._parts]

    def state_dict(self) -> dict[str, Any]:
        self.world.barrier()  # all pushes have arrived
        parts = [[tensor.clone() for tensor in part.tensors] for part in self._parts]
        return {"parts": parts, "version": self._versions.local.clone(), "read": self._read, **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for part, saved in zip(self._parts, state["parts"], strict=True):
            for tensor, value in zip(part.tensors, saved, strict=True):
                tensor.copy_(value)
        self._versions.local.copy_(state["version"])
        self._read = int(state["read"])
        super().load_state_dict(state)

    def _version(self) -> int:
        self._versions.pull(self._cell, 0)
        self._versions.flush()
        return int(self._cell)

    def _pull(self) -> None:
        self._read = self._version()
        if self.world.size > 1:
            for part in self._parts:
                part.pair.params.copy_(part.look_ahead())


def _momentum(optimizer: torch.optim.Optimizer) -> float:
    momenta = {float(group.get("momentum", math.nan)) for group in optimizer.param_groups}
    if not isinstance(optimizer, torch.optim.SGD) or len(momenta) > 1:
        raise UsageError(f"dana needs torch.optim.SGD with one momentum, not {type(optimizer).__name__}")
    if any(group["dampening"] or group["nesterov"] for group in optimizer.param_groups):
        raise UsageError("dana needs plain momentum, without dampening and nesterov: it looks ahead itself")
    return momenta.pop()
