"""A parameter server without servers: the parameters are sharded over the windows of the ranks that train."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hpcasync.clock import Clock
from hpcasync.compression import CODECS, Compression
from hpcasync.errors import UsageError
from hpcasync.replica import Pair, Replica
from hpcasync.strategies.letters import CompressedPushes
from hpcasync.strategies.sharded import Sharded
from hpcasync.strategies.strategy import Strategy
from hpcasync.world import World


class _Center:
    """One dtype's central parameters, sharded over the ranks' windows, and what this rank last knew of them."""

    def __init__(self, pair: Pair, world: World) -> None:
        self.pair = pair
        self.center = Sharded(world, pair.params)
        self.anchor = pair.params.detach().clone()  # this rank's parameters, less what it has not pushed yet
        self.update = torch.empty_like(self.anchor)

    def push(self, letters: CompressedPushes | None = None) -> None:
        """Add what this rank's optimizer has done since the last push into the shards. The caller flushes.

        With ``letters``, add what these can carry of it now.
        """
        torch.sub(self.pair.params, self.anchor, out=self.update)
        if letters is None:
            self.center.push(self.update)
            self.anchor.copy_(self.pair.params)
        else:
            letters.push(self.update)
            self.anchor.add_(self.update)


class Downpour(Strategy):
    """Downpour SGD with the ranks themselves as the parameter server.

        every ``push`` steps:   center <- center + (x_r - anchor_r),   anchor_r <- x_r
        every ``pull`` steps:   x_r <- center + (x_r - anchor_r),      anchor_r <- center
        every step:             x_r <- optimizer(x_r, g_r(x_r))

    Dean et al., "Large Scale Distributed Deep Networks", NeurIPS 2012, sec. 4.1 (n_push, n_fetch), with the clock gate
    of Ho et al. 2013 (see ``hpcasync.clock``). Updates are pushed, not gradients, so any optimizer serves. Concurrent
    pushes add up, so no update is lost. With push = pull = 1, n equal ranks see a staleness of n - 1.

    Compressed pushes are letters that an owner adds to its shard when it pushes or pulls itself; what they leave out
    remains in x_r - anchor_r and goes with later ones, the last as it is. Pulls are not compressed.

    Args:
        push: steps between two pushes.
        pull: steps between two pulls.
        bound: how many steps the slowest rank may be behind (SSP); inf never waits.
    """

    compresses = tuple(codec for codec in CODECS if codec != "powersgd")  # a shard is no matrix

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
        self._letters: list[CompressedPushes] = []  # one per center, if pushes are compressed
        self._pushes = world.window(1, torch.int64)  # rank 0's counts those of all ranks
        self._one, self._version = torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        self._read = self._pushed_since_read = self._unpushed = 0
        world.barrier()

    def compress(self, compression: Compression) -> None:
        assert compression.codec is not None
        if not self._alone:
            self._letters = [
                CompressedPushes(self.world, compression.codec, part.center, len(part.anchor)) for part in self._centers
            ]

    def _step(self) -> None:
        self._update_own()
        self.replica.zero_grads()
        self._unpushed += 1
        steps = self.clock.steps + 1
        pushes, pulls = steps % self.push == 0, steps % self.pull == 0
        both = pushes and pulls and not self._letters and self.clock.open()
        if both:
            self._exchange()
        elif pushes:
            self._push()
        self.clock.advance()
        self.clock.gate()
        if pulls and not both:
            self._pull()

    def drain(self) -> None:
        if self._unpushed:
            self._push()
        if self._letters:
            self._push_parts([])  # what the letters have left out
        self.clock.leave()
        self.world.barrier()
        self._serve()
        self.world.barrier()
        self._pull()

    def parameters(self) -> list[Tensor]:
        if self._alone:
            return super().parameters()
        centers = [torch.empty_like(part.anchor) for part in self._centers]
        for part, target in zip(self._centers, centers, strict=True):
            part.center.pull(target)
        return centers

    def state_dict(self) -> dict[str, Any]:
        self.world.barrier()  # all pushes have arrived
        self._serve()
        self.world.barrier()
        shards = [part.center.shard.clone() for part in self._centers]
        return {
            **super().state_dict(),
            "shards": shards,
            "anchors": [part.anchor.clone() for part in self._centers],
            "steps": self.clock.steps,
            "pushes": int(self._pushes.local),
            "read": self._read,
            "pushed_since_read": self._pushed_since_read,
            "unpushed": self._unpushed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for part, shard, anchor in zip(self._centers, state["shards"], state["anchors"], strict=True):
            part.center.shard.copy_(shard)
            part.anchor.copy_(anchor)
        self.clock.restore(int(state["steps"]))
        self._pushes.local.fill_(int(state["pushes"]))
        self._read = int(state["read"])
        self._pushed_since_read = int(state["pushed_since_read"])
        self._unpushed = int(state["unpushed"])
        super().load_state_dict(state)

    @property
    def _alone(self) -> bool:
        """A rank alone trains on its own parameters, and x + (y - x) need not be y in floating point."""
        return self.world.size == 1

    def _exchange(self) -> None:
        """A push and a pull."""
        if not self._alone:
            self._count_push()
            for part in self._centers:
                part.center.exchange(part.pair.params, part.anchor)
            self._pushes.flush()
        self._note_push()
        if not self._alone:
            self._read, self._pushed_since_read = int(self._version) + 1, 0

    def _push(self) -> None:
        if not self._alone:
            self._count_push()
            self._push_parts(self._letters)
            self._pushes.flush()
        self._note_push()

    def _count_push(self) -> None:
        self._pushes.pull(self._version, 0)
        self._pushes.push(self._one, 0)

    def _note_push(self) -> None:
        self.staleness.record(int(self._version) - self._read - self._pushed_since_read)
        self._pushed_since_read += not self._alone
        self._unpushed = 0

    def _push_parts(self, letters: Sequence[CompressedPushes]) -> None:
        for part, through in itertools.zip_longest(self._centers, letters):
            part.push(through)
        for part in self._centers:
            part.center.window.flush()

    def _serve(self) -> None:
        for letters in self._letters:
            letters.serve()

    def _pull(self) -> None:
        if self._alone:
            return
        self._serve()
        self._pushes.pull(self._version, 0)
        self._pushes.flush()
        self._read = int(self._version)
        self._pushed_since_read = 0
        for part in self._centers:
            params = part.pair.params
            if self._unpushed or self._letters:
                part.center.pull(part.update)
                params.add_(part.update.sub(part.anchor))
                part.anchor.copy_(part.update)
            else:  # by way of the anchor: a death during the pull leaves the parameters whole
                part.center.pull(part.anchor)
                params.copy_(part.anchor)
