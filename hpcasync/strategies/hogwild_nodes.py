"""Hogwild on two levels: lock-free inside a node, pipelined allreduce of the nodes' changes between nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.strategies.hogwild import Hogwild
from hpcasync.strategies.strategy import Strategy
from hpcasync.world import Request, World


@dataclass
class _Change:
    """What one node has done since the last exchange, per pair, and the sum over the nodes on its way."""

    own: list[Tensor]
    messages: list[Tensor]
    requests: list[Request]


class _Exchange:
    """The leaders' side: the nodes' changes, summed with at most ``bound`` sums in flight."""

    def __init__(self, replica: Replica, leaders: World, bound: int) -> None:
        self.replica, self.leaders, self.bound = replica, leaders, bound
        self.anchors = [pair.params.detach().clone() for pair in replica.pairs]  # the parameters as last exchanged
        lengths = [(pair.memory.numel(), pair.memory.dtype) for pair in replica.pairs]
        self._spare = [[leaders.buffer(n, dtype) for n, dtype in lengths] for _ in range(bound + 1)]
        self._changes: deque[_Change] = deque()
        self._window = leaders.window(2, torch.int64)  # exchanges that this leader has begun; 1 once its node has left
        self._known = torch.zeros(leaders.size, 2, dtype=torch.int64)

    def go_on(self) -> None:
        """Send this node's change on its way, and add what has arrived of the others' that began ``bound`` earlier."""
        messages = self._spare.pop()
        for pair, anchor, message in zip(self.replica.pairs, self.anchors, messages, strict=True):
            torch.sub(pair.params, anchor, out=message)
            anchor.add_(message)
        own = [message.clone() for message in messages]
        requests = [self.leaders.iallreduce(message) for message in messages]
        self._changes.append(_Change(own, messages, requests))
        self._window.local[0] += 1
        self._land(in_flight=self.bound)

    def behind(self) -> bool:
        """True if another leader has begun an exchange that this one has not."""
        return bool(self._look()[:, 0].max() > self._window.local[0])

    def leave(self) -> None:
        """This node makes no change any more."""
        self._window.local[1] = 1

    def come_back(self) -> None:
        """After :meth:`leave`. The caller has a barrier behind it."""
        self._window.local[1] = 0

    def all_left(self) -> bool:
        """True if no node makes a change any more."""
        return bool(self._look()[:, 1].all())

    def complete(self) -> None:
        """Bring every exchange that anyone has begun to its end; all leaders do, when none begins a new one."""
        while self.behind():
            self.go_on()
        self._land(in_flight=0)

    def agree(self) -> None:
        """Collective, when nobody makes changes: the nodes added the same ones, but in different orders, so rounded."""
        for pair, anchor in zip(self.replica.pairs, self.anchors, strict=True):
            self.leaders.broadcast(pair.params)
            anchor.copy_(pair.params)

    def _look(self) -> Tensor:
        for rank in range(self.leaders.size):
            self._window.pull(self._known[rank], rank)
        self._window.flush()
        return self._known

    def _land(self, in_flight: int) -> None:
        while len(self._changes) > in_flight:
            change = self._changes.popleft()
            for request in change.requests:
                request.wait()
            parts = zip(self.replica.pairs, self.anchors, change.own, change.messages, strict=True)
            for pair, anchor, own, message in parts:
                others = message.sub_(own)
                pair.params.add_(others)
                anchor.add_(others)
            self._spare.append(change.messages)


class HogwildNodes(Hogwild):
    """Hogwild! inside every node; between nodes, the changes that the nodes have made.

        x_v <- x_v - gamma · g_r(x_v)                         by every rank r of node v, whenever it is ready
        x_v <- x_v + Σ_{u != v} (x_u - anchor_u)              every ``period`` steps of v's first rank, begun ``bound``
                                                              exchanges earlier; anchor_v is x_v as last exchanged

    Niu et al. 2011 (see ``hogwild``) inside; the pipelined sum of ``stale`` (Li et al. 2018) outside, over the nodes'
    first ranks. Every update reaches every node once, and only the first rank of a node ever waits for another node.
    Staleness is counted in the node's own updates. On one node this is ``hogwild`` with an idle outer level.

    Args:
        period: steps of a node's first rank between two exchanges.
        bound: exchanges in flight while it goes on.
    """

    def __init__(
        self, replica: Replica, world: World, optimizer: torch.optim.Optimizer, period: int = 4, bound: int = 1
    ) -> None:
        if period < 1:
            raise UsageError(f"period={period}: it counts steps, so 1 or more")
        if bound < 0:
            raise UsageError(f"bound={bound}: it counts exchanges in flight, so 0 or more")
        Strategy.__init__(self, replica, world, optimizer)
        self._share()
        self._left = world.shared(world.size, torch.int64)  # 1 for every rank that has made its last step
        self._until_exchange = self.period = period
        leaders = world.leaders()
        self._exchange = _Exchange(replica, leaders, bound) if leaders and leaders.size > 1 else None
        world.barrier()

    def _step(self) -> None:
        super()._step()
        if self._exchange is None:
            return
        self._until_exchange -= 1
        if self._until_exchange == 0:
            self._until_exchange = self.period
            self._exchange.go_on()

    def drain(self) -> None:
        self._left[self.world.rank] = 1
        if self._exchange is not None:
            self._serve(self._exchange, until=self._all_left)
            self._exchange.go_on()  # with the node's last change
            self._exchange.leave()
            self._serve(self._exchange, until=self._exchange.all_left)
            self._exchange.complete()
            self._exchange.agree()
        self.world.barrier()

    def state_dict(self) -> dict[str, Any]:
        self.world.barrier()
        if self._exchange is not None:
            self._exchange.complete()
        anchors = [anchor.clone() for anchor in self._exchange.anchors] if self._exchange else []
        return {**super().state_dict(), "anchors": anchors, "until_exchange": self._until_exchange}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._left[self.world.rank] = 0
        if self._exchange is not None:
            self._exchange.come_back()
        self._until_exchange = int(state["until_exchange"])
        for anchor, saved in zip(self._exchange.anchors if self._exchange else [], state["anchors"], strict=True):
            anchor.copy_(saved)
        super().load_state_dict(state)

    def _serve(self, exchange: _Exchange, until: Callable[[], bool]) -> None:
        """Take part in the exchanges that others begin."""
        while not until():
            self.world.wait_until(lambda: until() or exchange.behind())
            if exchange.behind():
                exchange.go_on()

    def _all_left(self) -> bool:
        return int(self._left.sum()) == self.world.node.size
