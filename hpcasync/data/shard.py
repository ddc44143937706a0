"""The part of a data set in memory that one rank trains on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.world import split


class Shard:
    """Batches of rank ``rank``'s own samples out of ``x`` (N, ...) and ``y`` (N, ...), in a new order every epoch.

    The samples are dealt out once, at random, by ``seed``: each belongs to exactly one of the ``size`` ranks, and the
    ranks' counts differ by at most one. The order within an epoch depends on ``seed``, the rank and the epoch. Samples
    that do not fill a last batch are left out of that epoch. UsageError if not even one batch can be filled.
    """

    def __init__(self, x: Tensor, y: Tensor, rank: int, size: int, batch_size: int, seed: int = 0) -> None:
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size}: expected at least 1")
        self.x, self.y, self.batch_size = x, y, batch_size
        self.seed, self.epoch = seed, 0
        self.deal(rank, size)

    def deal(self, rank: int, size: int) -> None:
        """Deal all samples out again, to ``size`` ranks of which this is ``rank``: others have died."""
        start, stop = split(len(self.x), size)[rank]
        if stop - start < self.batch_size:
            raise UsageError(
                f"batch size {self.batch_size}: {len(self.x)} samples on {size} ranks leave rank {rank} only "
                f"{stop - start}"
            )
        self.rank = rank
        self.indices = np.random.default_rng(self.seed).permutation(len(self.x))[start:stop]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; ``epoch`` counts from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.indices) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng([self.seed, self.rank, self.epoch])
        order = torch.from_numpy(rng.permutation(self.indices)[: len(self) * self.batch_size])
        for batch in order.view(-1, self.batch_size):
            yield self.x[batch], self.y[batch]
