"""Compressed pushes into a sharded vector: owners decode them and add them up."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcasync.compression.codecs import Codec
from hpcasync.strategies.mailbox import Mailbox
from hpcasync.strategies.sharded import Sharded, shards
from hpcasync.world import World


class CompressedPushes:
    """Pushes into ``center`` (n,) that travel as letters; an owner reads them when it pushes itself, or serves.

    An owner that has not read a rank's last letter yet gets no other: what is left out, for this reason or by the
    codec, stays with the rank, which sends it along with its later updates. That is error feedback.
    """

    def __init__(self, world: World, codec: Codec, center: Sharded, length: int) -> None:
        self._rank, self._codec, self._center = world.rank, codec, center
        self._shards = shards(length, world.size)
        self._wide = torch.promote_types(center.shard.dtype, torch.float32)
        self._arrived = torch.empty_like(center.shard, dtype=self._wide)
        self._mailbox = Mailbox(world, codec.payload_bytes(len(center.shard), self._wide))

    def push(self, update: Tensor) -> None:
        """Send what can be sent of ``update`` (n,), and leave in it just what has been sent."""
        self.serve()
        free, letters = self._mailbox.free(), {}
        for owner, (start, stop) in enumerate(self._shards):
            part = update[start:stop]
            if owner == self._rank:
                self._center.window.push(part.clone(), owner)
            elif owner in free:
                letters[owner] = self._encode(part)
            else:
                part.zero_()
        self._mailbox.send(letters)
        self._center.window.flush()

    def serve(self) -> None:
        """Add the letters that have come into this rank's shard."""
        for _, letter in self._mailbox.read():
            self._codec.decode(letter, self._arrived)
            self._center.window.push(self._arrived.to(self._center.shard.dtype), self._rank)
            self._center.window.flush()

    def _encode(self, part: Tensor) -> Tensor:
        """The letter; ``part`` becomes what its reader will make of it."""
        letter = torch.zeros(self._codec.payload_bytes(len(part), self._wide), dtype=torch.uint8)
        wide = part.to(self._wide)
        self._codec.encode(wide, letter)
        decoded = torch.empty_like(wide)
        self._codec.decode(letter, decoded)
        part.copy_(decoded)
        return letter
