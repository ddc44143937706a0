"""Gossip inside backward(): a layer is updated and sent on as soon as its gradient is complete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpcasync.replica import Replica
from hpcasync.strategies.bucket import Bucket, Turns, buckets_of
from hpcasync.strategies.gossip import Sgp
from hpcasync.strategies.unflatten import only, unflatten
from hpcasync.world import World


class LayUp(Sgp):
    """Push-sum gossip layer by layer, inside backward(), with a peer drawn at random in every step.

        for buckets b = k, ..., 1, inside backward():   x_b <- optimizer(x_b, g_b(z)),   (x_b, w_b) <- (x_b, w_b) / 2,
                                                        and as much to the peer
        after it:                                       (x_b, w_b) <- (x_b, w_b) + Σ arrived,   z_b = x_b / w_b

    Fokam et al., "LayUp: Asynchronous decentralized gradient descent with layer-wise updates", 2024
    (https://arxiv.org/abs/2410.05985): the last layers are on their way while the first are still computed. Here the
    updates that have arrived are merged between two steps, not under a running forward(), and each bucket has a weight
    w_b of its own, so that the mass of ``sgp`` is kept bucket by bucket.

    The optimizer is given the model's own parameters in place of the flat ones, and makes one step per bucket.
    Between ``backward()`` and ``step()`` gradients have been used: to read or to change them is an error.

    Args:
        bucket_bytes: what a bucket holds at most, unless it is a single tensor.
        peers, bound: as of ``sgp``.

    Raises:
        UsageError: a cap below 1 byte; by backward(), when it is called twice in a step; or as ``sgp`` says.
    """

    sends_in_backward = True

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        bucket_bytes: int = 1 << 16,
        peers: str = "random",
        bound: int = 2,
    ) -> None:
        self._buckets = buckets_of(replica, bucket_bytes)
        for pair in replica.pairs:
            unflatten(optimizer, pair)
        super().__init__(replica, world, optimizer, peers, bound)
        self._number = {bucket: number for number, bucket in enumerate(self._buckets)}
        self._turns = Turns(self._buckets, self._update)
        self._targets = self._push_sum.open_peers(self.bound)
        replica.watch_grads(self._ready)

    def _step(self) -> None:
        self._turns.finish()
        self._spent.clear()
        self._turns.restart()
        self.replica.zero_grads()
        self._push_sum.flush()
        self._merge()
        self._look_ahead()
        self._push_sum.flush()
        self._targets = self._push_sum.open_peers(self.bound)

    def drain(self) -> None:
        if self._turns.begun:
            self.step()
        super().drain()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._targets = self._push_sum.open_peers(self.bound)

    def _parts(self) -> list[Tensor]:
        return [bucket.pair.params[bucket.start_element : bucket.stop_element] for bucket in self._buckets]

    def _changed(self, number: int, change: Tensor) -> None:
        for bucket, part in self._number.items():
            if bucket.pair is self.replica.pairs[number]:
                own = change[bucket.start_element : bucket.stop_element]
                self._push_sum.x(part).addcmul_(own, self._push_sum.w(part))

    def _ready(self, tensor: Tensor) -> None:
        if not self._turns.begun:
            self._adopt_parameters()
            self.replica.adopt_strays()
        self._turns.complete(tensor)
        self._turns.advance()

    def _update(self, bucket: Bucket) -> None:
        """The optimizer's step on the bucket's x, and its shares on their way."""
        number = self._number[bucket]
        bucket.pair.adopt_strays(bucket.first, bucket.stop)
        self.finite_check.clean(bucket.pair.grads[bucket.start_element : bucket.stop_element])
        estimates = [tensor.data for tensor in bucket.tensors]
        for tensor, span in zip(bucket.tensors, bucket.pair.spans[bucket.first : bucket.stop], strict=True):
            x = self._push_sum.x(number)[span.start - bucket.start_element : span.stop - bucket.start_element]
            tensor.data = x.view(span.shape)
        with only(self.optimizer, bucket.tensors):
            self.optimizer.step()
        for tensor, estimate in zip(bucket.tensors, estimates, strict=True):
            tensor.data = estimate
        self._push_sum.send(number, self._targets)
        self._spent.mark([*bucket.tensors, bucket.pair.flat])
