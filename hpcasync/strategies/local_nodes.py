"""Asynchronous local SGD on two levels: the ranks of a node share a center, and the nodes share another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.strategies.outer import Roaming
from hpcasync.strategies.tally import Tally
from hpcasync.world import World


class _NodeCenter:
    """A node's center y (n_i,) and its anchor, what it was when last exchanged, in its first rank's windows."""

    def __init__(self, world: World, values: Sequence[Tensor]) -> None:
        self._leader = world.node.leader
        mine = world.rank == self._leader
        self._windows = [world.window(2 * each.numel() if mine else 0, each.dtype) for each in values]
        self._lengths = [each.numel() for each in values]
        self.tally = Tally(world, self._leader)
        for window, each in zip(self._windows, values, strict=True):
            if mine:
                window.local.view(2, -1).copy_(each)

    def pull(self, targets: Sequence[Tensor], anchors: bool = False) -> None:
        """Read the center, or its anchor, into ``targets``."""
        for window, length, target in zip(self._windows, self._lengths, targets, strict=True):
            window.pull(target, self._leader, length if anchors else 0)
            window.flush()

    def push(self, ways: Sequence[Tensor], anchors: bool = False) -> None:
        """Add ``ways`` to the center, or to its anchor."""
        for window, length, way in zip(self._windows, self._lengths, ways, strict=True):
            window.push(way, self._leader, length if anchors else 0)
            window.flush()

    def state(self) -> dict[str, Any]:
        return {"memory": [window.local.clone() for window in self._windows], "tally": self.tally.local.clone()}

    def restore(self, state: Mapping[str, Any]) -> None:
        for window, saved in zip(self._windows, state["memory"], strict=True):
            window.local.copy_(saved)
        self.tally.local.copy_(state["tally"])


class Halos(Roaming):
    """Asynchronous local SGD in two levels, after HALoS.

        every ``period`` steps of r:             y_v <- y_v + (x_r - anchor_r) / n_v,   x_r, anchor_r <- y_v
        every ``accumulate`` of these on node v: center <- outer(center, anchor_v - y_v), and with what center then is
                                                 y_v, anchor_v <- (1 - mix) y_v + mix center, later arrivals kept in y_v

    where n_v is the number of ranks on node v, and outer is delayed Nesterov with N = the number of nodes (see
    :class:`outer.Outer`). Kim et al., "HALoS: Hierarchical Asynchronous Local SGD over Slow Networks for
    Geo-Distributed Large Language Model Training", ICML 2025 (https://arxiv.org/abs/2506.04531): local servers, a
    global one, momentum there, and merging. Like it in these; the paper's momentum of the local servers is left out,
    the ranks themselves are the servers, and the defaults are not the paper's. No rank waits for another, and a
    parameter crosses between nodes once in period · accumulate / n_v steps.

    Momentum makes stale ways worse, and with one node nothing delays it: where 4 ranks of one node share 2 busy cores,
    an outer momentum of 0.9 can diverge, and one of 0.5 was not seen to.

    Args:
        period: steps of a rank between two exchanges within the node.
        accumulate: exchanges within a node for one between nodes.
        mix: how much of the center a node takes on.
        outer_lr, outer_momentum: of the outer optimizer.

    Raises:
        UsageError: a period or a number to accumulate below 1, or a number out of range.
    """

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        period: int = 10,
        accumulate: int = 8,
        mix: float = 0.5,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
    ) -> None:
        if accumulate < 1:
            raise UsageError(f"accumulate={accumulate}: it counts exchanges, so 1 or more")
        if not 0 < mix <= 1:
            raise UsageError(f"mix={mix}: it is a share, above 0 and up to 1")
        super().__init__(replica, world, optimizer, period, outer_lr, outer_momentum, every=_nodes(world), c=0.0)
        self.accumulate, self.mix = accumulate, mix
        self._node = _NodeCenter(world, self._anchors)
        world.barrier()

    def _step(self) -> None:
        self._update_own()
        self.replica.zero_grads()
        self._since += 1
        if self._since == self.period:
            self._exchange()

    def drain(self) -> None:
        if self._since:
            self._exchange()
        self.world.barrier()
        if self.world.node.rank == 0:
            self._exchange_between_nodes()
        self.world.barrier()
        self._outer.pull(self._anchors)
        self._go_on()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "node": self._node.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._node.restore(state["node"])
        super().load_state_dict(state)

    def _exchange(self) -> None:
        """Within the node; and between nodes, if it is time."""
        for anchor, pair in zip(self._anchors, self.replica.pairs, strict=True):
            torch.sub(pair.params, anchor, out=anchor).div_(self.world.node.size)
        self._node.push(self._anchors)
        self.staleness.record(self._node.tally.so_far() - self._read)
        if self._node.tally.arrive(self.accumulate):
            self._exchange_between_nodes()
            self._node.tally.done()
        self._read = self._node.tally.so_far()
        self._node.pull(self._anchors)
        self._go_on()
        self._since = 0

    def _exchange_between_nodes(self) -> None:
        centers, anchors, ways = ([torch.empty_like(each) for each in self._anchors] for _ in range(3))
        self._node.pull(centers)
        self._node.pull(anchors, anchors=True)
        for center, anchor, way in zip(centers, anchors, ways, strict=True):
            torch.sub(anchor, center, out=way)
        self._outer.update(ways)
        self._outer.pull(ways)
        for center, anchor, way in zip(centers, anchors, ways, strict=True):
            way.sub_(center).mul_(self.mix)
            anchor.neg_().add_(center).add_(way)
        self._node.push(ways)
        self._node.push(anchors, anchors=True)


def _nodes(world: World) -> int:
    """Collective. How many nodes there are."""
    leaders = torch.tensor([int(world.node.rank == 0)])
    world.allreduce(leaders)
    return int(leaders)
