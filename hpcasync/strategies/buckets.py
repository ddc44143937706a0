"""One dtype's part in BASGD: this rank's gradients on their way to the owners, and the buckets of its own shard."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpcasync.aggregation import Rule
from hpcasync.replica import Pair
from hpcasync.strategies.mailbox import Mailbox
from hpcasync.strategies.sharded import Sharded, shard_of, shards
from hpcasync.world import World

_COUNT_BYTES = 8  # in front of a letter: how many gradients it is the sum of


class BucketedShard:
    """See :class:`hpcasync.strategies.basgd.Basgd`. A gradient is on its way, in a bucket, or in an update.

    Attributes:
        updates: made to this rank's shard.
        is_over: all ranks have left, and what they have sent is read.
    """

    def __init__(self, pair: Pair, world: World, optimizer: torch.optim.Optimizer, rule: Rule, buckets: int) -> None:
        self.pair, self.center, self.updates = pair, Sharded(world, pair.params), 0
        self.is_over = False
        self._rank, self._rule, self._given = world.rank, rule, optimizer
        self._shards = shards(pair.params.numel(), world.size)
        self._unsent, self._unsent_counts = torch.zeros_like(pair.params), [0] * len(self._shards)
        self._mailbox = Mailbox(world, _COUNT_BYTES + self.center.shard.nbytes)
        self._left = world.window(world.size, torch.int64)  # 1 for each rank that sends no more
        self._one = torch.ones(1, dtype=torch.int64)
        self._bucket_of = torch.arange(world.size) % buckets
        self._sums = torch.zeros(buckets, len(self.center.shard), dtype=pair.params.dtype)
        self._counts = torch.zeros(world.size, dtype=torch.int64)  # of each rank's gradients in the buckets
        self._parameter = torch.nn.Parameter(self.center.shard)
        self._optimizer = _like(optimizer, self._parameter)

    def collect(self) -> None:
        """Take over the gradient."""
        self._unsent.add_(self.pair.grads)
        self._unsent_counts = [count + 1 for count in self._unsent_counts]

    def send(self) -> None:
        """Send what has not been sent yet to the owners that have read what was sent before."""
        letters = {}
        for owner in (self._rank, *self._mailbox.free()):
            start, stop = shard_of(owner, self._shards)
            if start == stop or not self._unsent_counts[owner]:
                continue
            count, part = self._unsent_counts[owner], self._unsent[start:stop]
            if owner == self._rank:
                self._put(owner, count, part)
            else:
                letters[owner] = torch.empty(_COUNT_BYTES + part.nbytes, dtype=torch.uint8)
                letters[owner][:_COUNT_BYTES].view(torch.int64).fill_(count)
                letters[owner][_COUNT_BYTES:].view(part.dtype).copy_(part)
            part.zero_()
            self._unsent_counts[owner] = 0
        self._mailbox.send(letters)

    def serve(self) -> None:
        """Put what has come into the buckets; make an update if none is empty."""
        all_left = bool(self._left.local.all())  # looked at first: whoever has left sends no letter after these
        for sender, letter in self._mailbox.read():
            count = int(letter[:_COUNT_BYTES].view(torch.int64))
            self._put(sender, count, letter[_COUNT_BYTES:].view(self._sums.dtype))
        counts = torch.zeros(len(self._sums), dtype=torch.int64).index_add_(0, self._bucket_of, self._counts)
        if counts.all():
            self._update(self._sums / counts[:, None])
        self.is_over = all_left

    def leave(self) -> None:
        """This rank has sent all it will ever send."""
        for owner in range(len(self._left.local)):
            self._left.push(self._one, owner, self._rank)
        self._left.flush()

    @property
    def is_sent(self) -> bool:
        return not any(self._unsent_counts)

    @property
    def unused(self) -> int:
        """How many gradients of this rank lie in buckets of its shard."""
        return int(self._counts[self._rank])

    def discard(self) -> None:
        """Empty the buckets of this rank's shard."""
        self._sums.zero_()
        self._counts.zero_()

    def state_dict(self) -> dict[str, Any]:
        """To be called when all letters have been read."""
        return {
            "shard": self.center.shard.clone(),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "unsent": self._unsent.clone(),
            "unsent_counts": list(self._unsent_counts),
            "sums": self._sums.clone(),
            "counts": self._counts.clone(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.center.shard.copy_(state["shard"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._unsent.copy_(state["unsent"])
        self._unsent_counts = list(state["unsent_counts"])
        self._sums.copy_(state["sums"])
        self._counts.copy_(state["counts"])
        self.updates = int(state["updates"])
        self._left.local.zero_()
        self.is_over = False

    def _put(self, sender: int, count: int, gradients: Tensor) -> None:
        self._sums[self._bucket_of[sender]] += gradients
        self._counts[sender] += count

    def _update(self, means: Tensor) -> None:
        assert self._rule.combine is not None
        self._parameter.grad = self._rule.combine(means, self._rule.f)
        self._optimizer.param_groups[0]["lr"] = self._given.param_groups[0]["lr"]
        self._optimizer.step()
        self.discard()
        self.updates += 1


def _like(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
    """Another one of the same class and values, for ``parameter``."""
    known = inspect.signature(type(optimizer)).parameters.keys() - {"params"}
    values = {name: value for name, value in optimizer.param_groups[0].items() if name in known}
    return type(optimizer)([parameter], **values)
