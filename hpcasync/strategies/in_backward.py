"""Synchronous SGD that updates the parameters inside backward(), bucket by bucket, and keeps no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hpcasync.replica import Replica, dense, step_with_mean
from hpcasync.strategies.bucket import Bucket, Turns, buckets_of
from hpcasync.strategies.strategy import Strategy
from hpcasync.strategies.unflatten import only, unflatten
from hpcasync.world import World


class InBackward(Strategy):
    """Synchronous data-parallel SGD whose gradient is never held whole.

        for buckets b = k, ..., 1, inside backward():   x_b <- x_b - gamma · (1 / n) Σ_r g_{r,b}(x),   forget g_b

    Lv et al., "Full Parameter Fine-tuning for Large Language Models with Limited Resources" (LOMO), 2023, sec. 3.2
    (https://arxiv.org/abs/2306.09782), for any optimizer that treats parameters one by one and summed over the ranks.
    The optimizer is given the model's own parameters in place of the flat ones, and only those of one bucket have a
    gradient when it steps, so its arithmetic is plain PyTorch's, bit for bit.

    All buckets of a dtype pass through one buffer, which holds the largest of them; beside it there is only the
    gradient that autograd is just handing over, and those of tensors that are ready before their bucket's turn. Waiting
    for the other ranks inside backward() is the price. Where a World cannot wait there
    (``World.can_wait_in_backward``), ``step()`` does all of the work, with the same result and without the saving.

    Gradients cannot be clipped by their norm: the first are gone before the last exist. A parameter's values may not be
    needed once its gradient is complete, for example by way of ``p.detach()``.

    Args:
        bucket_bytes: what a bucket holds at most, unless it is a single tensor.

    Attributes:
        peak_gradient_bytes: the most bytes of gradient held at one time so far: a bucket, and what waited for its turn.

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
        for pair in replica.pairs:
            unflatten(optimizer, pair)
        super().__init__(replica, world, optimizer)
        self._turns = Turns(buckets, self._update)
        self._messages: dict[Bucket, Tensor] = {}  # a bucket's gradient, and a count behind it
        self._places: dict[Tensor, Tensor] = {}  # a tensor's place in its bucket's message
        self._waiting: dict[Tensor, Tensor] = {}  # gradients that are complete before their bucket's turn
        self._contributed, self._active = 1, False
        self.peak_gradient_bytes = 0
        for pair in replica.pairs:
            pair.forget_grads()
            self._lay([bucket for bucket in buckets if bucket.pair is pair])
        replica.watch_grads(self._complete)

    def _step(self) -> None:
        self._finish()
        self.staleness.record(0)

    def drain(self) -> None:
        if self._turns.begun:
            self.step()
        self._contributed = 0
        self._active = True
        while self._active:
            self._finish()
        self._contributed = 1

    def _finish(self) -> None:
        self._turns.finish()
        self._turns.restart()
        self._spent.clear()

    def _lay(self, buckets: Sequence[Bucket]) -> None:
        """Collective. Lay all of a pair's buckets on one memory, each over the others."""
        longest = max(bucket.elements for bucket in buckets)
        memory = self.world.buffer(longest + 1, buckets[0].pair.memory.dtype)
        for bucket in buckets:
            self._messages[bucket] = memory[: bucket.elements + 1]
            spans = bucket.pair.spans[bucket.first : bucket.stop]
            for tensor, span in zip(bucket.tensors, spans, strict=True):
                place = memory[span.start - bucket.start_element : span.stop - bucket.start_element]
                self._places[tensor] = place.view(span.shape)

    def _complete(self, tensor: Tensor) -> None:
        self._turns.complete(tensor)
        assert tensor.grad is not None
        self._waiting[tensor] = dense(tensor.grad)
        self._spent.mark([tensor])
        if self.world.can_wait_in_backward:
            if self._turns.is_next(tensor):
                self._places[tensor].copy_(self._waiting.pop(tensor))
            self._measure()
            self._turns.advance()

    def _measure(self) -> None:
        held = self._turns.bucket.bytes + sum(grad.nbytes for grad in self._waiting.values())
        self.peak_gradient_bytes = max(self.peak_gradient_bytes, held)

    def _update(self, bucket: Bucket) -> None:
        """Reduce a bucket's gradient, update its parameters, forget the gradient."""
        self._measure()
        for tensor in bucket.tensors:
            self._put(tensor)
        message = self._messages[bucket]
        self.finite_check.clean(message[:-1])
        message[-1] = self._contributed
        self.world.allreduce(message)
        count = message[-1].float()
        self._active = bool(count)
        if self._active:
            with only(self.optimizer, bucket.tensors):
                step_with_mean(self.optimizer, bucket.tensors, count)
        self._spent.mark(bucket.tensors)

    def _put(self, tensor: Tensor) -> None:
        """Have a tensor's gradient at its place: it is there, it waits, somebody has set it, or it is zero."""
        place = self._places[tensor]
        if not self._turns.is_complete(tensor):
            place.zero_() if tensor.grad is None else place.copy_(dense(tensor.grad))
        elif tensor in self._waiting:
            place.copy_(self._waiting.pop(tensor))
        tensor.grad = place
