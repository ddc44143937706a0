"""Elastic averaging: every rank trains a replica of its own, which a spring ties to a center that all share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.strategies.sharded import Sharded
from hpcasync.strategies.strategy import Strategy
from hpcasync.world import World


class Easgd(Strategy):
    """Elastic averaging SGD, asynchronous: a rank waits for no other.

        every ``period`` steps:   f = alpha (x_r - center),   x_r <- x_r - f,   center <- center + f
        every step:               x_r <- optimizer(x_r, g_r),   g_r computed before the exchange

    Zhang, Choromanska, LeCun, "Deep learning with Elastic Averaging SGD", NeurIPS 2015, alg. 1
    (https://arxiv.org/abs/1412.6651). What runs deliver is the center, sharded over the ranks' windows. An exchange
    keeps Σ_r x_r + center, whatever happens meanwhile.

    On a quadratic mode lambda, gamma · lambda = eta, with one rank after the other and period 1, it is stable if
    eta <= 2 and alpha <= (4 - 2 eta) / (4 - eta) (their sec. 3.3). For an odd number of ranks that is also the largest
    alpha; for an even number the largest is a little above (eta = 1: 0.707 with 2 ranks and 0.675 with 4, for 2/3).

    ``drain`` makes a last exchange, so the center has felt every gradient; the replicas then become the center. A
    death loses what the ranks' replicas differ by: the living begin anew at the first one's.

    Args:
        period: steps between two exchanges of a rank (tau in the paper).
        beta: n alpha, the pull of all ranks together on the center.

    Raises:
        UsageError: a period below 1, or a beta that is not above 0.
    """

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        period: int = 10,
        beta: float = 0.9,
    ) -> None:
        if period < 1:
            raise UsageError(f"period={period}: it counts steps, so 1 or more")
        if not beta > 0:
            raise UsageError(f"beta={beta}: it is the pull on the center, so above 0")
        super().__init__(replica, world, optimizer)
        self.period, self.alpha = period, beta / world.size
        self._centers = [Sharded(world, pair.params) for pair in replica.pairs]
        self._forces = [torch.zeros_like(pair.params) for pair in replica.pairs]  # the World's from push to flush
        self._exchanges = world.window(1, torch.int64)  # rank 0's counts those of all ranks
        self._one, self._version = torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        self._known = 0  # exchanges of all ranks when this rank had made its last
        self._steps = 0
        world.barrier()

    def _step(self) -> None:
        if self._steps % self.period == 0:
            self._exchange()
        self._descend()
        self.replica.zero_grads()
        self._steps += 1

    def drain(self) -> None:
        self._exchange()
        self._settle()
        self.world.barrier()
        for pair, center in zip(self.replica.pairs, self.parameters(), strict=True):
            pair.params.copy_(center)  # by way of a copy: a death during the pull leaves the parameters whole

    def parameters(self) -> list[Tensor]:
        centers = [torch.empty_like(pair.params) for pair in self.replica.pairs]
        for center, target in zip(self._centers, centers, strict=True):
            center.pull(target)
        return centers

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        self.world.barrier()
        return {
            **super().state_dict(),
            "shards": [center.shard.clone() for center in self._centers],
            "exchanges": int(self._exchanges.local),
            "known": self._known,
            "steps": self._steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for center, shard in zip(self._centers, state["shards"], strict=True):
            center.shard.copy_(shard)
        self._exchanges.local.fill_(int(state["exchanges"]))
        self._known, self._steps = int(state["known"]), int(state["steps"])
        super().load_state_dict(state)

    def _descend(self) -> None:
        self._update_own()

    def _exchange(self) -> None:
        """Pull the center, give way to the force, and have the center give way to it, too."""
        self._settle()  # of the last exchange, which has long arrived
        self._exchanges.pull(self._version, 0)
        for pair, center, force in zip(self.replica.pairs, self._centers, self._forces, strict=True):
            center.pull(force)
            torch.sub(pair.params, force, out=force).mul_(self.alpha)
            pair.params.sub_(force)
            center.push(force)
        self._exchanges.flush()
        self._exchanges.push(self._one, 0)
        self.staleness.record(int(self._version) - self._known)
        self._known = int(self._version) + 1

    def _settle(self) -> None:
        """Return when this rank's last exchange has reached the center."""
        for center in self._centers:
            center.window.flush()
        self._exchanges.flush()


class Eamsgd(Easgd):
    """Elastic averaging with Nesterov's momentum in every rank.

        every step:               v_r <- delta v_r + (optimizer(y_r, g_r(y_r)) - y_r),   x_r <- x_r + v_r
        every ``period`` steps:   f = alpha (x_r - center),   x_r <- x_r - f,   center <- center + f

    where y_r = x_r + delta v_r is what the model holds between steps, so that gradients are computed there. Zhang,
    Choromanska, LeCun 2015, alg. 2 (https://arxiv.org/abs/1412.6651). The optimizer is meant to be plain SGD, for the
    momentum is here; delta = 0.99 makes a step about 100 times as long, so its lr is about 100 times as small.

    Args:
        period, beta: as of ``easgd``.
        momentum: delta.

    Raises:
        UsageError: a momentum that is not in [0, 1), or as ``easgd`` says.
    """

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        period: int = 10,
        beta: float = 0.9,
        momentum: float = 0.99,
    ) -> None:
        if not 0 <= momentum < 1:
            raise UsageError(f"momentum={momentum}: it is in [0, 1)")
        super().__init__(replica, world, optimizer, period, beta)
        self.momentum = momentum
        self._velocities = [torch.zeros_like(pair.params) for pair in replica.pairs]

    def _step(self) -> None:
        self._leave_look_ahead()
        super()._step()

    def drain(self) -> None:
        self._leave_look_ahead()
        super().drain()
        for velocity in self._velocities:
            velocity.zero_()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "velocities": [velocity.clone() for velocity in self._velocities]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for velocity, saved in zip(self._velocities, state["velocities"], strict=True):
            velocity.copy_(saved)
        super().load_state_dict(state)

    def _leave_look_ahead(self) -> None:
        for pair, velocity in zip(self.replica.pairs, self._velocities, strict=True):
            pair.params.sub_(velocity, alpha=self.momentum)

    def _descend(self) -> None:
        before = [pair.params.clone() for pair in self.replica.pairs]
        super()._descend()
        for pair, velocity, start in zip(self.replica.pairs, self._velocities, before, strict=True):
            velocity.mul_(self.momentum).add_(pair.params.sub_(start))
            pair.params.copy_(start).add_(velocity, alpha=1 + self.momentum)
