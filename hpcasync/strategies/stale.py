"""Pipelined allreduce: the reduction of one step's gradients travels while the next steps compute."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcasync.compression import CODECS
from hpcasync.errors import UsageError
from hpcasync.reduction import InFlight
from hpcasync.replica import Replica
from hpcasync.strategies.strategy import Strategy
from hpcasync.world import Stages, World


@dataclass
class _Flight:
    """One step's messages on their way, and how many updates had been made when their gradient was computed."""

    messages: list[Tensor]
    reduction: InFlight
    version: int
    mine: bool


class Stale(Strategy):
    """SGD with a fixed delay: at most ``bound`` reductions are in flight.

        x_{t+1} = x_t - gamma · (1 / n) Σ_r g_r(x_{t - bound})

    Li et al., "Pipe-SGD: A Decentralized Pipelined SGD Framework for Distributed Deep Net Training", NeurIPS 2018,
    alg. 1 (https://arxiv.org/abs/1811.03619). On a quadratic mode lambda it is stable iff
    gamma · lambda < 2 sin(pi / (2 (2 bound + 1))). A reduction is applied ``bound`` steps after it began even if it
    arrives sooner, so a run does not depend on timing; ``bound=0`` equals ``sync`` bit for bit. A compressed reduction
    has two stages, of which the second begins after half of the steps, so ranks may be only bound // 2 steps apart.

    Args:
        bound: reductions in flight while a rank computes.
    """

    replicated = True
    compresses = CODECS

    def __init__(self, replica: Replica, world: World, optimizer: torch.optim.Optimizer, bound: int = 1) -> None:
        if bound < 0:
            raise UsageError(f"bound={bound}: it counts reductions in flight, so 0 or more")
        super().__init__(replica, world, optimizer)
        self.bound = bound
        self._halfway = (bound + 1) // 2  # steps after which a reduction of two stages goes on to its second
        self.ahead = bound + 1
        self._reduce_where_gradients_lie(messages=bound + 2)  # in flight, just begun, and being filled
        self._version = 0
        self._flights: deque[_Flight] = deque()

    def _step(self) -> None:
        self._begin(contributed=1)
        self._apply_due()

    def drain(self) -> None:
        self._begin(contributed=0)
        while self._apply_due():
            self._begin(contributed=0)
        while self._flights:  # begun behind the first empty one, so empty themselves
            self._land(self._flights.popleft())

    def state_dict(self) -> dict[str, Any]:
        for flight in self._flights:
            flight.reduction.wait()
        arrived = [{"messages": [m.clone() for m in f.messages], "version": f.version} for f in self._flights]
        return {**super().state_dict(), "arrived": arrived, "version": self._version}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._version = int(state["version"])
        self._flights = deque(
            _Flight([m.clone() for m in saved["messages"]], InFlight(iter(())), int(saved["version"]), mine=True)
            for saved in state["arrived"]
        )
        super().load_state_dict(state)

    def _begin(self, contributed: int) -> None:
        messages = self.replica.renew_grads()
        messages[0][-1] = contributed
        stages: Stages = iter(())
        if self.bound:
            stages = self.reduction.stages(self.world, messages)
        else:  # nothing is ever in flight: the same verb as sync's, so the same bits
            self.reduction.whole(self.world, messages)
        self._flights.append(_Flight(messages, InFlight(stages), self._version, mine=bool(contributed)))

    def _apply_due(self) -> bool:
        """Apply what has been in flight for ``bound`` steps. False when nobody had contributed to it."""
        if self.reduction.has_more_stages and len(self._flights) > self._halfway:
            self._flights[-1 - self._halfway].reduction.advance()
        if len(self._flights) <= self.bound:
            return True
        return self._land(self._flights.popleft())

    def _land(self, flight: _Flight) -> bool:
        flight.reduction.wait()
        active = bool(flight.messages[0][-1])
        if active:
            self.replica.apply_mean(self.optimizer, flight.messages)
            if flight.mine:
                self.staleness.record(self._version - flight.version)
            self._version += 1
        self.replica.recycle(flight.messages)
        return active
