"""What the ranks share of a model's neurons: the parameters, and for every block a version and a lease."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from hpcasync.replica import Replica
from hpcasync.strategies.neuron_layout import Block, merge
from hpcasync.strategies.sharded import shard_of, shards
from hpcasync.world import World


class _Sharded:
    """A vector (n,) of which every rank's window holds a shard."""

    def __init__(self, values: Tensor, world: World) -> None:
        self._shards = shards(values.numel(), world.size)
        start, stop = shard_of(world.rank, self._shards)
        self.window = world.window(stop - start, values.dtype)
        self.window.local.copy_(values[start:stop])

    def push(self, source: Tensor, start: int) -> None:
        for owner, offset, a, b in self._parts(start, start + source.numel()):
            self.window.push(source[a - start : b - start], owner, offset)

    def pull(self, target: Tensor, start: int) -> None:
        for owner, offset, a, b in self._parts(start, start + target.numel()):
            self.window.pull(target[a - start : b - start], owner, offset)

    def take(self, target: Tensor, start: int) -> None:
        for owner, offset, a, b in self._parts(start, start + target.numel()):
            self.window.take(target[a - start : b - start], owner, offset)

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """(owner, offset in its shard, a, b) for the parts [a, b) of elements [start, stop)."""
        for owner, (first, end) in enumerate(self._shards):
            if first < stop and start < end:
                a, b = max(start, first), min(stop, end)
                yield owner, a - first, a, b


class Board:
    """The parameters and the blocks' cells as all ranks share them, and what this rank has read of them.

    Cells, for n blocks:

        [version_0 .. version_{n-1}     updates made of the block, counted when they have arrived
         token_0 .. token_{n-1}]        1, or 0 while somebody has the lease

    Taking a token is atomic and leaves zero, so one rank gets it. What is read after a version is at least as new as
    the version says. A rank alone trains on its own parameters, for x + (y - x) need not be y in floating point.

    Attributes:
        known: (n,) the versions as last read, before the parameters were.
    """

    def __init__(self, replica: Replica, world: World, blocks: Sequence[Block]) -> None:
        self._pairs, self._blocks, self._alone = replica.pairs, blocks, world.size == 1
        self._centers = [_Sharded(pair.params, world) for pair in replica.pairs]
        self.known = torch.zeros(len(blocks), dtype=torch.int64)
        self._cells = _Sharded(torch.cat([self.known, torch.ones_like(self.known)]), world)
        self._one = torch.ones(1, dtype=torch.int64)
        world.barrier()

    def lease(self, number: int) -> bool:
        """Take the lease of block ``number``; False if somebody else has it."""
        token = torch.zeros_like(self._one)
        self._cells.take(token, len(self._blocks) + number)
        self._cells.window.flush()
        return bool(token)

    def release(self, number: int) -> None:
        """Give the lease of block ``number`` back."""
        self._cells.push(self._one, len(self._blocks) + number)
        self._cells.window.flush()

    def versions(self, first: int, stop: int) -> Tensor:
        """(stop - first,) int64: the versions of blocks [first, stop) now."""
        versions = torch.empty(stop - first, dtype=torch.int64)
        self._cells.pull(versions, first)
        self._cells.window.flush()
        return versions

    def count(self, first: int, updates: Tensor) -> None:
        """Add ``updates`` (m,) int64 to the versions of the blocks from ``first`` on."""
        self._cells.push(updates, first)
        self._cells.window.flush()

    def read(self, spans: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        """Copies of this rank's own parameters in ``spans``, to be compared with later."""
        return [] if self._alone else [self._pairs[pair].params[start:end].clone() for pair, start, end in spans]

    def write(self, spans: Sequence[tuple[int, int, int]], before: Sequence[Tensor]) -> None:
        """Add what has changed in ``spans`` since :meth:`read` returned ``before`` to the shared parameters."""
        if self._alone:
            return
        for (pair, start, end), old in zip(spans, before, strict=True):
            self._centers[pair].push(torch.sub(self._pairs[pair].params[start:end], old), start)
        self._flush()

    def refresh(self) -> None:
        """Read every block of which there is another version than the one last read."""
        versions = self.versions(0, len(self._blocks))
        if not self._alone:
            changed = (versions != self.known).nonzero().flatten().tolist()
            self._fetch(merge(piece for number in changed for piece in self._blocks[number].pieces))
        self.known = versions

    def fetch_all(self) -> None:
        """Read all shared parameters into this rank's own."""
        if not self._alone:
            self._fetch([(number, 0, pair.params.numel()) for number, pair in enumerate(self._pairs)])

    def parameters(self) -> list[Tensor]:
        """[(n_i,), ...] per pair: copies of the shared parameters now."""
        if self._alone:
            return [pair.params for pair in self._pairs]
        copies = [torch.empty_like(pair.params) for pair in self._pairs]
        for center, copy in zip(self._centers, copies, strict=True):
            center.pull(copy, 0)
        self._flush()
        return copies

    def state_dict(self) -> dict[str, object]:
        return {
            "shards": [center.window.local.clone() for center in self._centers],
            "cells": self._cells.window.local.clone(),
            "known": self.known.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor | list[Tensor]]) -> None:
        for center, shard in zip(self._centers, state["shards"], strict=True):
            center.window.local.copy_(shard)
        self._cells.window.local.copy_(torch.as_tensor(state["cells"]))
        self.known = torch.as_tensor(state["known"]).clone()

    def _fetch(self, spans: Sequence[tuple[int, int, int]]) -> None:
        """Read the shared parameters in ``spans``, by way of other memory: a death meanwhile leaves the own whole."""
        landing = [self._pairs[pair].params.new_empty(end - start) for pair, start, end in spans]
        for (pair, start, _), target in zip(spans, landing, strict=True):
            self._centers[pair].pull(target, start)
        self._flush()
        for (pair, start, end), target in zip(spans, landing, strict=True):
            self._pairs[pair].params[start:end] = target

    def _flush(self) -> None:
        for center in self._centers:
            center.window.flush()
