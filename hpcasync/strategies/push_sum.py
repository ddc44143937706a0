"""Push-sum: parameters as mass that ranks send on and never lose, whoever is slow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hpcasync.world import World

_ANNOUNCED, _LANDED, _MERGED = range(3)  # shares that a rank has been told of, that are whole in its inbox, and merged


class PushSum:
    """A rank's numerators x and weights w, one of each per part of the parameters, and the inboxes of its shares.

        send:      (x, w) <- (x, w) / (peers + 1),   and as much to each peer
        receive:   (x, w) <- (x, w) + Σ arrived (x, w)

    Kempe, Dobra, Gehrke, "Gossip-Based Computation of Aggregate Information", FOCS 2003, protocol Push-Sum. Over the
    ranks, what is on its way included, Σ w stays n and Σ x changes by what ranks add only; x / w tends to the mean.

    A push is atomic per element only, so a share that is just landing could be read in part: some elements of x, and
    not the w that belongs to them. As pushes land in the order in which they were called, a rank announces a share
    before it and reports it behind it. The receiver keeps what it takes if nothing was under way meanwhile; else all
    of it goes back into the inbox, for the next time.

    What a rank adds to x counts by 1 / w in x / w, so w should not become small: see :meth:`open_peers`.

    Args:
        parts: [(k_i,), ...] what x begins with; w begins with 1.
    """

    def __init__(self, world: World, parts: Sequence[Tensor]) -> None:
        self._world = world
        self._memories = [torch.cat([part.detach(), part.new_ones(1)]) for part in parts]
        self._shares = [torch.zeros_like(memory) for memory in self._memories]  # the World's from send() to flush()
        self._inboxes = [world.window(memory.numel(), memory.dtype) for memory in self._memories]
        self._counts = world.window(3 * len(parts), torch.int64)  # of part i in [3 i, 3 i + 3)
        self._one = torch.ones(1, dtype=torch.int64)
        self._peers: list[int] = []
        self._seen = torch.zeros(0, 3 * len(parts), dtype=torch.int64)  # the peers' counts

    def x(self, part: int) -> Tensor:
        """(k,) the numerator, the memory itself."""
        return self._memories[part][:-1]

    def w(self, part: int) -> Tensor:
        """() the weight, the memory itself."""
        return self._memories[part][-1]

    def estimate(self, part: int, out: Tensor) -> None:
        """x / w into ``out`` (k,): this rank's idea of the mean."""
        torch.div(self.x(part), self.w(part), out=out)

    def look(self, peers: Sequence[int]) -> None:
        """Begin to read how many shares wait at ``peers``, the ones to send to after the next :meth:`flush`."""
        self._peers = list(peers)
        self._seen = self._seen.new_zeros(len(peers), self._counts.local.numel())
        for peer, row in zip(peers, self._seen, strict=True):
            self._counts.pull(row, peer)

    def open_peers(self, bound: int) -> list[int]:
        """Those last looked at who have fewer than ``bound`` shares waiting; none if this rank has w < 1/2 itself."""
        if any(float(memory[-1]) < 0.5 for memory in self._memories):
            return []
        counts = self._seen.view(len(self._peers), len(self._inboxes), 3)
        waiting = (counts[:, :, _ANNOUNCED] - counts[:, :, _MERGED]).amax(dim=1).tolist()
        return [peer for peer, shares in zip(self._peers, waiting, strict=True) if shares < bound]

    def send(self, part: int, peers: Sequence[int]) -> None:
        """Divide this rank's mass among itself and ``peers``. Nothing waits; a share arrives by the next flush."""
        memory, share = self._memories[part], self._shares[part]
        memory.div_(len(peers) + 1)
        if peers:
            share.copy_(memory)
        for peer in peers:
            self._counts.push(self._one, peer, 3 * part + _ANNOUNCED)
            self._inboxes[part].push(share, peer)
            self._counts.push(self._one, peer, 3 * part + _LANDED)

    def flush(self) -> None:
        """Return when all that :meth:`send` and :meth:`look` have begun is complete."""
        for inbox in self._inboxes:
            inbox.flush()
        self._counts.flush()

    def receive(self, part: int) -> int:
        """Merge what has arrived, after a flush: how many shares, or 0 if one is just landing."""
        me, inbox, taken, counts = self._world.rank, self._inboxes[part], self._shares[part], self._counts.local
        first = 3 * part
        landed, merged = int(counts[first + _LANDED]), int(counts[first + _MERGED])
        if landed == merged:
            return 0
        inbox.take(taken, me)
        inbox.flush()
        if int(counts[first + _ANNOUNCED]) > landed:
            inbox.push(taken, me)
            inbox.flush()
            return 0
        self._memories[part].add_(taken)
        counts[first + _MERGED] = landed
        return landed - merged

    def gather(self) -> None:
        """Collective, when all ranks have flushed: every rank has the mean, with weight 1."""
        self._world.barrier()
        for part, memory in enumerate(self._memories):
            self.receive(part)
            total = memory.clone()  # a death during the sum leaves the parameters whole
            self._world.allreduce(total)
            torch.div(total, total[-1], out=memory)

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs. After a flush on all ranks and a barrier."""
        return {
            "memories": [memory.clone() for memory in self._memories],
            "inboxes": [inbox.local.clone() for inbox in self._inboxes],
            "counts": self._counts.local.clone(),
            "peers": self._peers,
            "seen": self._seen.clone(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take on a :meth:`state`, this rank's own. The caller has a barrier behind it."""
        for memory, saved in zip(self._memories, state["memories"], strict=True):
            memory.copy_(saved)
        for inbox, saved in zip(self._inboxes, state["inboxes"], strict=True):
            inbox.local.copy_(saved)
        self._counts.local.copy_(state["counts"])
        self._peers, self._seen = list(state["peers"]), state["seen"].clone()
