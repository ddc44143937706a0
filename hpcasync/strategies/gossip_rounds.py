"""Gossip in rounds: every rank takes on a mean of its neighbours' parameters, and waits for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch

from hpcasync import topology
from hpcasync.replica import Replica
from hpcasync.strategies.gossip import Gossip
from hpcasync.world import World

_PUBLISHED, _MADE, _LEFT = range(3)  # rounds that a rank has published; those with a gradient; 1 after its last step


class DPsgd(Gossip):
    """Decentralized parallel SGD: synchronous, with the neighbours only.

        x_r <- optimizer(Σ_s W_rs x_s, g_r(x_r)),   W_rs = 1 / (d + 1) for r itself and its d neighbours

    Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017, alg. 1
    (https://arxiv.org/abs/1705.09056). A round waits until the neighbours have published their parameters of the same
    round, so a slow rank slows down its neighbours at once, theirs one round later, and everyone in the end. Two slots
    per rank are enough: nobody publishes a third round before its readers have read the first.

    A rank that has made its last step goes on mixing until nobody makes steps, so the mean is kept: ``drain`` waits
    for all.

    Args:
        peers: ring, or exponential, or one_peer, of the exponential graph; there a rank reads from one side only.
    """

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        peers: Literal["ring", "exponential", "one_peer"] = "ring",
    ) -> None:
        self._topology = topology.named(peers)
        super().__init__(replica, world, optimizer)
        self._slots = [world.window(2 * pair.params.numel(), pair.params.dtype) for pair in replica.pairs]
        self._counts = world.window(3, torch.int64)
        self._known = torch.zeros(world.size, 3, dtype=torch.int64)
        world.barrier()

    def step(self) -> None:
        self.replica.adopt_strays()
        self._counts.local[_MADE] = self._steps + 1
        self._mix()
        self.optimizer.step()
        self.replica.zero_grads()
        self.staleness.record(0)

    def drain(self) -> None:
        self._counts.local[_LEFT] = 1
        while self._somebody_steps():
            self._mix()
        self._average()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "slots": [slot.local.clone() for slot in self._slots], "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for slot, saved in zip(self._slots, state["slots"], strict=True):
            slot.local.copy_(saved)
        self._steps = int(state["steps"])
        self._counts.local.copy_(torch.tensor([self._steps, self._steps, 0]))
        super().load_state_dict(state)

    def _mix(self) -> None:
        """A round: publish, wait for those I read and for those who still read my round before this, read."""
        rank, size, parity = self.world.rank, self.world.size, self._steps % 2
        sources = topology.sources(self._topology, rank, size, self._steps)
        readers = self._topology(rank, size, self._steps - 1) if self._steps else ()
        for pair, slot in zip(self.replica.pairs, self._slots, strict=True):
            slot.local.view(2, -1)[parity].copy_(pair.params)
        self._steps += 1
        self._counts.local[_PUBLISHED] = self._steps
        awaited = {*sources, *readers}
        self.world.wait_until(lambda: self._all_published(awaited))
        for pair, slot in zip(self.replica.pairs, self._slots, strict=True):
            parts = pair.params.new_empty(len(sources), pair.params.numel())
            for part, source in zip(parts, sources, strict=True):
                slot.pull(part, source, parity * pair.params.numel())
            slot.flush()
            pair.params.add_(parts.sum(dim=0)).div_(len(sources) + 1)

    def _all_published(self, awaited: Iterable[int]) -> bool:
        late = [rank for rank in awaited if int(self._known[rank, _PUBLISHED]) < self._steps]
        self._look(late)
        return all(int(self._known[rank, _PUBLISHED]) >= self._steps for rank in late)

    def _somebody_steps(self) -> bool:
        """Wait until it is known of every rank whether it makes a step in this round; True if one does."""
        self.world.wait_until(self._all_decided)
        return bool((self._known[:, _MADE] > self._steps).any())

    def _all_decided(self) -> bool:
        self._look(range(self.world.size))
        return bool(((self._known[:, _MADE] > self._steps) | (self._known[:, _LEFT] > 0)).all())

    def _look(self, ranks: Iterable[int]) -> None:
        for rank in ranks:
            self._counts.pull(self._known[rank], rank)
        self._counts.flush()
