"""Lock-free SGD on one memory: every rank of a node computes on, and updates, the same parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.strategies.strategy import Strategy
from hpcasync.world import World


class Hogwild(Strategy):
    """Hogwild!: forward, backward and the optimizer's step all run on node-shared memory, without locks.

        x <- x - gamma · g_r(x_read)        by every rank r, whenever it is ready

    Niu et al., "HOGWILD!: A Lock-Free Approach to Parallelizing Stochastic Gradient Descent", NeurIPS 2011, alg. 1
    (https://arxiv.org/abs/1106.5730). With n equal ranks a gradient is n - 1 updates old when it is applied. Two ranks
    that write an element at the same moment may lose one of the writes: the algorithm's own, tolerated race.

    Optimizer state stays each rank's own. (A shared heavy-ball buffer would decay n times a round: momentum beta would
    act like beta to the power n.)

    Raises:
        UsageError: the ranks are spread over several nodes.
    """

    _read = 0  # updates that the node had made when this rank last read the parameters

    def __init__(self, replica: Replica, world: World, optimizer: torch.optim.Optimizer) -> None:
        if world.node.size != world.size:
            raise UsageError(
                f"hogwild needs all {world.size} ranks on one node (this node has {world.node.size}): "
                "choose downpour, or start the ranks on one node"
            )
        super().__init__(replica, world, optimizer)
        self._share()

    def _step(self) -> None:
        self._update_own()
        self.replica.zero_grads()
        if not self.contributes:
            return
        made = int(self._board.sum())
        self.staleness.record(made - self._read)
        self._board[self.world.rank] += 1
        self._read = made + 1

    def drain(self) -> None:
        self.world.barrier()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._read = int(self._board.sum())

    def _share(self) -> None:
        """Move the parameters of a node's replicas into one memory, and count its updates in another."""
        self._board = self.world.shared(self.world.size, torch.int64)  # a rank writes its own element only
        for pair in self.replica.pairs:
            memory = self.world.shared(pair.params.numel(), pair.params.dtype)
            if self.world.node.rank == 0:
                memory.copy_(pair.params)
            self.world.barrier()
            pair.rebase(memory)
