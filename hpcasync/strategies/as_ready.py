"""Synchronous SGD whose communication hides behind backward(): gradients travel as soon as they are complete."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcasync.replica import Replica
from hpcasync.strategies.bucket import Bucket, Turns, buckets_of
from hpcasync.strategies.strategy import Strategy
from hpcasync.world import Request, World


class AsReady(Strategy):
    """Synchronous data-parallel SGD with the reduction inside backward().

        x_{t+1} = x_t - gamma · (1 / n) Σ_r g_r(x_t),       g = (g_1, ..., g_k), reduced from the last bucket g_k on

    Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020, sec. 3.2.3
    (https://arxiv.org/abs/2006.15704). Buckets are neighbours on the flat gradient and are reduced where they lie, in
    one order on all ranks: a complete bucket waits for those before it. The result equals ``sync``'s bit for bit
    wherever the World sums in the order of the ranks. A parameter without a gradient in a step is sent by ``step()``,
    and so are all complete buckets behind it.

    Between ``backward()`` and ``step()`` gradients are on their way: to read or to change them is an error.

    Args:
        bucket_bytes: what a bucket holds at most, unless it is a single tensor.

    Raises:
        UsageError: a cap below 1 byte; by backward(), when it is called twice in a step.
    """

    replicated = True
    sends_in_backward = True
    ahead = 1

    def __init__(
        self, replica: Replica, world: World, optimizer: torch.optim.Optimizer, bucket_bytes: int = 1 << 20
    ) -> None:
        buckets = buckets_of(replica, bucket_bytes)
        super().__init__(replica, world, optimizer)
        self._reduce_where_gradients_lie(messages=1)
        self._turns = Turns(buckets, self._send)
        self._requests: list[Request] = []
        self._contribute(1)
        replica.watch_grads(self._ready)

    def _step(self) -> None:
        self._round()
        self.staleness.record(0)
        self._contribute(1)

    def drain(self) -> None:
        if self._turns.begun:
            self.step()
        self._contribute(0)
        while self._round():
            self._contribute(0)
        self._contribute(1)  # of a step to come, should there be one

    def _contribute(self, count: int) -> None:
        """How many contributions this rank's next round counts for; reduced with the gradient."""
        self.replica.pairs[0].message[-1] = count

    def _ready(self, tensor: Tensor) -> None:
        self._turns.complete(tensor)
        self._turns.advance()

    def _send(self, bucket: Bucket) -> None:
        pair = bucket.pair
        pair.adopt_strays(bucket.first, bucket.stop)
        self.finite_check.clean(pair.grads[bucket.start_element : bucket.stop_element])
        self._spent.mark([*bucket.tensors, pair.flat])
        stop = bucket.stop_element + (bucket.stop == len(pair.tensors))  # the count goes with the last tensor
        self._requests.append(self.world.iallreduce(pair.message[bucket.start_element : stop]))

    def _round(self) -> bool:
        """Everyone's gradient, reduced and applied. False when nobody contributed: all have made their last step."""
        self._turns.finish()
        for request in self._requests:
            request.wait()
        self._requests.clear()
        self._spent.clear()
        messages = [pair.message for pair in self.replica.pairs]
        active = bool(messages[0][-1])
        if active:
            self.replica.apply_mean(self.optimizer, messages)
        self.replica.zero_grads()
        self._turns.restart()
        return active
