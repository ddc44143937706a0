"""Synchronous SGD: every step waits for every rank. The baseline that the others are measured against."""

from __future__ import annotations

import torch

from hpcasync.compression import CODECS
from hpcasync.replica import Replica
from hpcasync.strategies.strategy import Strategy
from hpcasync.world import World


class Sync(Strategy):
    """Synchronous data-parallel SGD.

        x_{t+1} = x_t - gamma · (1 / n) Σ_r g_r(x_t)

    Chen et al., "Revisiting Distributed Synchronous SGD", 2016, eq. 1 (https://arxiv.org/abs/1604.00981). A step takes
    as long as the slowest rank's: with exponential compute times H_n = 1 + 1/2 + ... + 1/n times the mean. Ranks that
    have made their last step contribute nothing; the mean is over those that did contribute.
    """

    replicated = True
    compresses: tuple[str, ...] = CODECS
    ahead = 1

    def __init__(self, replica: Replica, world: World, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(replica, world, optimizer)
        self._reduce_where_gradients_lie(messages=1)

    def _step(self) -> None:
        self._round(contributed=1)

    def drain(self) -> None:
        while self._round(contributed=0):
            pass

    def _round(self, contributed: int) -> bool:
        """One reduction of everyone's gradient. False when nobody contributed: all have made their last step."""
        messages = [pair.message for pair in self.replica.pairs]
        messages[0][-1] = contributed
        self.reduction.whole(self.world, messages)
        active = bool(messages[0][-1])
        if active:
            self.replica.apply_mean(self.optimizer, messages)
        self.replica.zero_grads()
        if contributed:
            self.staleness.record(0)
        return active
