"""Gossip in rounds: every rank takes on a mean of its neighbours' parameters, and waits for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from hpcasync import topology
from hpcasync.compression import Compression, Moniqua
from hpcasync.replica import Pair, Replica
from hpcasync.strategies.gossip import Gossip
from hpcasync.world import World

_PUBLISHED, _MADE, _LEFT = range(3)  # rounds that a rank has published; those with a gradient; 1 after its last step


class _Slots:
    """What a rank publishes of one dtype's parameters (n,): this round's and the last one's, as they are or coded."""

    def __init__(self, world: World, pair: Pair, moniqua: Moniqua | None = None) -> None:
        self._pair, self._moniqua = pair, moniqua
        params = pair.params
        self._length = params.numel() if moniqua is None else moniqua.payload_bytes(params.numel())
        self._window = world.window(2 * self._length, params.dtype if moniqua is None else torch.uint8)

    @property
    def memory(self) -> Tensor:
        return self._window.local

    def free(self) -> None:
        self._window.free()

    def publish(self, parity: int) -> None:
        params = self._pair.params.detach()
        slot = self._window.local.view(2, -1)[parity]
        slot.copy_(params if self._moniqua is None else self._moniqua.encode(params))

    def mix(self, parity: int, sources: tuple[int, ...]) -> None:
        """Have the mean of this rank's parameters and of those of ``sources``."""
        params, own = self._pair.params, self._window.local.view(2, -1)[parity]
        parts = own.new_empty(len(sources), self._length)
        for part, source in zip(parts, sources, strict=True):
            self._window.pull(part, source, parity * self._length)
        self._window.flush()
        if self._moniqua is None:
            params.add_(parts.sum(dim=0)).div_(len(sources) + 1)
            return
        mine = params.detach().clone()
        seen = self._moniqua.decode(own, mine)  # as the others see it, so that all ranks' sum is kept
        for part in parts:
            params.add_((self._moniqua.decode(part, mine) - seen).div_(len(sources) + 1))


class DPsgd(Gossip):
    """Decentralized parallel SGD: synchronous, with the neighbours only.

        x_r <- optimizer(Σ_s W_rs x_s, g_r(x_r)),   W_rs = 1 / (d + 1) for r itself and its d neighbours

    Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017, alg. 1
    (https://arxiv.org/abs/1705.09056). A round waits until the neighbours have published their parameters of the same
    round, so a slow rank slows down its neighbours at once, theirs one round later, and everyone in the end. Two slots
    per rank are enough: nobody publishes a third round before its readers have read the first.

    Compressed by Moniqua (``moniqua:THETA``, Lu and De Sa 2020) what is published takes a byte per element; with x_hat
    for what a rank reads of it, its own included: x_r <- x_r + Σ_s W_rs (x_hat_s - x_hat_r), which keeps Σ x_r.

    A rank that has made its last step goes on mixing until nobody makes steps, so the mean is kept: ``drain`` waits
    for all.

    Args:
        peers: ring, or exponential, or one_peer, of the exponential graph; there a rank reads from one side only.
    """

    compresses = ("moniqua",)

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        peers: Literal["ring", "exponential", "one_peer"] = "ring",
    ) -> None:
        self._topology = topology.named(peers)
        super().__init__(replica, world, optimizer)
        self._slots = [_Slots(world, pair) for pair in replica.pairs]
        self._counts = world.window(3, torch.int64)
        self._known = torch.zeros(world.size, 3, dtype=torch.int64)
        world.barrier()

    def compress(self, compression: Compression) -> None:
        for slots in self._slots:
            slots.free()
        self._slots = [_Slots(self.world, pair, compression.moniqua) for pair in self.replica.pairs]

    def _step(self) -> None:
        self._counts.local[_MADE] = self._steps + 1
        self._mix()
        self._update_own()
        self.replica.zero_grads()
        self.staleness.record(0)

    def drain(self) -> None:
        self._counts.local[_LEFT] = 1
        while self._somebody_steps():
            self._mix()
        self._average()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "slots": [slots.memory.clone() for slots in self._slots], "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for slots, saved in zip(self._slots, state["slots"], strict=True):
            slots.memory.copy_(saved)
        self._steps = int(state["steps"])
        self._counts.local.copy_(torch.tensor([self._steps, self._steps, 0]))
        super().load_state_dict(state)

    def _mix(self) -> None:
        """A round: publish, wait for those I read and for those who still read my round before this, read."""
        rank, size, parity = self.world.rank, self.world.size, self._steps % 2
        sources = topology.sources(self._topology, rank, size, self._steps)
        readers = self._topology(rank, size, self._steps - 1) if self._steps else ()
        for slots in self._slots:
            slots.publish(parity)
        self._steps += 1
        self._counts.local[_PUBLISHED] = self._steps
        awaited = {*sources, *readers}
        self.world.wait_until(lambda: self._all_published(awaited))
        for slots in self._slots:
            slots.mix(parity, sources)

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
