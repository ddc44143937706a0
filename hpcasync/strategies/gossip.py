"""Push-sum gossip: every rank trains its own parameters and sends shares of them on; nobody waits for anybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpcasync import topology
from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.strategies.push_sum import PushSum
from hpcasync.strategies.strategy import Strategy
from hpcasync.world import World


class Gossip(Strategy):
    """What strategies without a center share: the replicas lie in windows, and result() is their mean."""

    def __init__(self, replica: Replica, world: World, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(replica, world, optimizer)
        self._replicas = [self._into_window(pair) for pair in replica.pairs]
        self._steps = 0

    def parameters(self) -> list[Tensor]:
        return self._mean_over_ranks(self.replica.pairs, self._replicas)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._steps = int(state["steps"])
        super().load_state_dict(state)

    def _average(self) -> None:
        """Collective. Have the mean of the replicas in all of them."""
        for pair in self.replica.pairs:
            total = pair.params.clone()  # a death during the sum leaves the parameters whole
            self.world.allreduce(total)
            torch.div(total, self.world.size, out=pair.params)
        self.world.barrier()


class Sgp(Gossip):
    """Stochastic gradient push, asynchronous: a slow rank keeps nobody waiting.

        x_r <- optimizer(x_r, g_r(z_r)),   (x_r, w_r) <- (x_r, w_r) / (d + 1), and as much to each of d peers
        (x_r, w_r) <- (x_r, w_r) + Σ arrived (x, w),   z_r = x_r / w_r

    where z_r is what the model holds and w_r = 1 at the start. Assran, Loizou, Ballas, Rabbat, "Stochastic Gradient
    Push for Distributed Deep Learning", ICML 2019, alg. 1 (https://arxiv.org/abs/1811.10792). There a step waits for
    the messages of its peers' same step; here it merges what has arrived, which is push-sum all the same: the mass
    Σ w = n and Σ x are kept at every moment, messages in flight included, up to rounding. In float16 and bfloat16
    that rounding is what limits it.

    Every gradient counts once, by gamma / n in the mean of the x_r, so faster ranks count more often. In z_r it counts
    by gamma / w_r, and w_r falls while a rank sends and does not receive. Two rules that the paper does not need keep
    that harmless: who has w_r < 1/2 keeps it all, so w_r >= 1 / (2 d + 2), and a peer with ``bound`` unread shares is
    passed over, so a slow rank does not soak up the mass. (Measured without the first, 4 ranks: w_r fell to 0.01 beside
    a rank 50 times slower; with exponential compute times, lr 0.05 and momentum 0.5, digits diverged.)

    A step ends when its shares have landed. Weight decay acts on x_r.

    Args:
        peers: the topology: one_peer, exponential, ring or random (see ``hpcasync.topology``).
        bound: a peer with this many unread shares is passed over.

    Raises:
        UsageError: a topology that is not known, or a bound below 1.
    """

    rereads = True

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        peers: str = "one_peer",
        bound: int = 2,
    ) -> None:
        self._topology = topology.named(peers)
        if bound < 1:
            raise UsageError(f"bound={bound}: it counts shares that may wait at a peer, so 1 or more")
        super().__init__(replica, world, optimizer)
        self.bound = bound
        self._estimates = self._parts()
        self._push_sum = PushSum(world, self._estimates)
        self._push_sum.look(self._peers())
        self._push_sum.flush()
        world.barrier()

    def _changed(self, number: int, change: Tensor) -> None:
        self._push_sum.x(number).addcmul_(change, self._push_sum.w(number))

    def _step(self) -> None:
        self._descend()
        self._push_sum.flush()
        self._merge()
        peers = self._push_sum.open_peers(self.bound)
        for part in range(len(self._estimates)):
            self._push_sum.send(part, peers)
        self._look_ahead()
        self._end_of_step()

    def drain(self) -> None:
        self._push_sum.flush()
        self._push_sum.gather()
        self._estimate()
        self.world.barrier()  # now every replica is the mean

    def state_dict(self) -> dict[str, Any]:
        self._push_sum.flush()
        self.world.barrier()
        return {**super().state_dict(), "push_sum": self._push_sum.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._push_sum.restore(state["push_sum"])
        super().load_state_dict(state)

    def _parts(self) -> list[Tensor]:
        """What is sent in one go, as views of the parameters: here all of a pair."""
        return [pair.params for pair in self.replica.pairs]

    def _peers(self) -> tuple[int, ...]:
        return self._topology(self.world.rank, self.world.size, self._steps)

    def _descend(self) -> None:
        """The optimizer's step on x with the gradient at z."""
        for part, pair in enumerate(self.replica.pairs):
            pair.show(self._push_sum.x(part))
        self._update_own()
        for pair in self.replica.pairs:
            pair.show(pair.params)
        self.replica.zero_grads()

    def _merge(self) -> None:
        """Have what has arrived in x and w, and the new x / w in the model."""
        self.staleness.record(max(self._push_sum.receive(part) for part in range(len(self._estimates))))
        self._estimate()

    def _look_ahead(self) -> None:
        """Begin to look at whom the next step's shares are for."""
        self._steps += 1
        self._push_sum.look(self._peers())

    def _end_of_step(self) -> None:
        self._push_sum.flush()

    def _estimate(self) -> None:
        for part, estimate in enumerate(self._estimates):
            self._push_sum.estimate(part, estimate)


class OverlapSgp(Sgp):
    """SGP whose shares travel while the next step computes.

        (x_r, w_r) <- (x_r, w_r) / (d + 1), and as much on its way to each of d peers until the next step's end

    Assran et al. 2019, alg. 2 (overlap SGP with tau = 1, https://arxiv.org/abs/1811.10792); see ``sgp``. A rank waits
    for its own shares of the step before only, so it never waits if a share travels in the time of a step.
    """

    def _end_of_step(self) -> None:
        """The shares are on their way, and stay there."""
