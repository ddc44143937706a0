"""Asynchronous SGD that stands faulty ranks: owners collect gradients in buckets, and apply a rule to the buckets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpcasync.aggregation import parse_rule
from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.strategies.buckets import BucketedShard
from hpcasync.strategies.strategy import Strategy
from hpcasync.world import World


class Basgd(Strategy):
    """Buffered asynchronous SGD (BASGD).

        a gradient g_r comes:        bucket[r mod B] <- mean of it and what is there
        no bucket is empty:          x <- x - gamma · rule(bucket_1, ..., bucket_B),   empty all buckets
        every step:                  x_r <- x

    Yang and Li, "BASGD: Buffered Asynchronous SGD for Byzantine Learning", ICML 2021, alg. 2
    (https://arxiv.org/abs/2003.00937). The parameters are sharded over the ranks, and every owner does this with its
    shard, when it makes a step itself or waits at the end; so rules are those that treat each coordinate by itself. A
    rank that finds its last gradient not yet read adds the next to it, and never waits. f faulty ranks spoil at most f
    buckets: B > 2 f. With fewer buckets than ranks an update need not wait for the slowest. When all ranks that fill a
    bucket have made their last step, there are no more updates; the gradients still to come are dropped, for a rule
    among fewer buckets would not stand as many faulty ones.

    The owners use optimizers like the one given, with the values of its first group of parameters, on their shards.

    Args:
        buckets: B, from 1 to the number of ranks; 0 is one per rank.
        rule: median, mean or trimmed:F; see ``hpcasync.aggregation``.

    Raises:
        UsageError: more buckets than ranks, or a rule that is unknown, needs more buckets or whole gradients.
    """

    rereads = True

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        buckets: int = 0,
        rule: str = "median",
    ) -> None:
        if not 0 <= buckets <= world.size:
            raise UsageError(f"buckets={buckets}: it is at most the number of ranks, {world.size}; 0 is one per rank")
        parsed = parse_rule(rule, buckets or world.size)
        if parsed.combine is None:
            raise UsageError(f"rule={rule}: basgd takes mean, median or trimmed:F; no owner has whole gradients")
        super().__init__(replica, world, optimizer)
        self._parts = [BucketedShard(pair, world, optimizer, parsed, buckets or world.size) for pair in replica.pairs]
        self._updates = world.window(1, torch.int64)  # rank 0's: of its shard
        self._version = torch.zeros(1, dtype=torch.int64)
        self._read = 0
        world.barrier()

    def _step(self) -> None:
        if self.contributes:
            for part in self._parts:
                part.collect()
        self.replica.zero_grads()
        self._serve()
        self._look()
        self.staleness.record(int(self._version) - self._read)
        self._pull()

    def drain(self) -> None:
        self.world.wait_until(self._all_sent)
        for part in self._parts:
            part.leave()
        self.world.wait_until(self._all_over)
        self.dropped += self._parts[0].unused
        for part in self._parts:
            part.discard()
        self.world.barrier()
        self._pull()

    def parameters(self) -> list[Tensor]:
        centers = [torch.empty_like(pair.params) for pair in self.replica.pairs]
        for part, target in zip(self._parts, centers, strict=True):
            part.center.pull(target)
        return centers

    def state_dict(self) -> dict[str, Any]:
        self.world.barrier()  # all letters have arrived
        for part in self._parts:
            part.serve()
        self.world.barrier()
        parts = [part.state_dict() for part in self._parts]
        return {**super().state_dict(), "parts": parts, "updates": int(self._updates.local), "read": self._read}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        self._updates.local.fill_(int(state["updates"]))
        self._read = int(state["read"])
        super().load_state_dict(state)

    def _serve(self) -> None:
        """Send what can be sent, and attend to what has come."""
        for part in self._parts:
            part.send()
            part.serve()
        self._updates.local.fill_(self._parts[0].updates)

    def _all_sent(self) -> bool:
        self._serve()
        return all(part.is_sent for part in self._parts)

    def _all_over(self) -> bool:
        self._serve()
        return all(part.is_over for part in self._parts)

    def _look(self) -> None:
        self._updates.pull(self._version, 0)
        self._updates.flush()

    def _pull(self) -> None:
        self._look()
        self._read = int(self._version)
        for pair, center in zip(self.replica.pairs, self.parameters(), strict=True):
            pair.params.copy_(center)  # by way of a copy: a death during the pull leaves the parameters whole
