"""Gossip in pairs: a rank and one other take on the mean of their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hpcasync import topology
from hpcasync.replica import Replica
from hpcasync.strategies.gossip import Gossip
from hpcasync.world import World


class AdPsgd(Gossip):
    """Asynchronous decentralized parallel SGD: odd ranks average with even ones, one-sidedly.

        odd r, every step, with an even s drawn at random:   d = (x_s - x_r) / 2,   x_r <- x_r + d,   x_s <- x_s - d
        every rank, every step:                              x_r <- optimizer(x_r, g_r), g_r computed before that

    Lian, Zhang, Zhang, Liu, "Asynchronous Decentralized Parallel Stochastic Gradient Descent", ICML 2018, alg. 1
    (https://arxiv.org/abs/1710.06952). As there, one side of a bipartite graph begins all exchanges, so there is no
    circle in which ranks wait for each other; and here the other side need not answer at all. The odd rank reads x_s
    and what waits in the inbox of s, and pushes -d into that inbox; s adds it to x_s at the end of its next step. So
    an exchange is complete for everyone but s at once, and Σ x_r changes by the ranks' updates only, whatever happens
    meanwhile. Only if two odd ranks read the same s at the same instant, their pair of means is not quite that.

    A rank waits for what it reads to travel, never for another rank. On one rank there is nobody to average with.
    """

    def __init__(self, replica: Replica, world: World, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(replica, world, optimizer)
        self._inboxes = [world.window(pair.params.numel(), pair.params.dtype) for pair in replica.pairs]
        self._arrivals = world.window(1, torch.int64)  # exchanges that this rank's inbox has had
        self._seen = 0
        self._ways = [torch.zeros_like(pair.params) for pair in replica.pairs]  # the World's from push to flush
        self._waiting = [torch.zeros_like(pair.params) for pair in replica.pairs]
        self._one = torch.ones(1, dtype=torch.int64)
        world.barrier()

    def _step(self) -> None:
        for peer in topology.bipartite(self.world.rank, self.world.size, self._steps):
            self._exchange(peer)
        self._merge()
        self._update_own()
        self.replica.zero_grads()
        self._steps += 1

    def drain(self) -> None:
        self._flush()
        self.world.barrier()
        self._merge()
        self._average()

    def state_dict(self) -> dict[str, Any]:
        self._flush()
        self.world.barrier()
        return {
            **super().state_dict(),
            "inboxes": [inbox.local.clone() for inbox in self._inboxes],
            "arrivals": int(self._arrivals.local),
            "seen": self._seen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for inbox, saved in zip(self._inboxes, state["inboxes"], strict=True):
            inbox.local.copy_(saved)
        self._arrivals.local.fill_(int(state["arrivals"]))
        self._seen = int(state["seen"])
        super().load_state_dict(state)

    def _exchange(self, peer: int) -> None:
        self._flush()  # of the last exchange, which has long arrived
        for replica, inbox, way, waiting in zip(self._replicas, self._inboxes, self._ways, self._waiting, strict=True):
            replica.pull(way, peer)
            inbox.pull(waiting, peer)
            replica.flush()
            inbox.flush()
            way.add_(waiting).sub_(replica.local).mul_(0.5)
            replica.local.add_(way)
            inbox.push(way.neg_(), peer)
        self._arrivals.push(self._one, peer)

    def _merge(self) -> None:
        """Add what others have pushed to the parameters."""
        arrivals = int(self._arrivals.local)
        self.staleness.record(arrivals - self._seen)
        if arrivals == self._seen:
            return
        self._seen = arrivals
        for pair, inbox, taken in zip(self.replica.pairs, self._inboxes, self._waiting, strict=True):
            inbox.take(taken, self.world.rank)
            inbox.flush()
            pair.params.add_(taken)

    def _flush(self) -> None:
        for inbox in self._inboxes:
            inbox.flush()
        self._arrivals.flush()
