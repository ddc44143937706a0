"""Sums of compressed messages, for codecs whose payloads cannot be added up as they are.

Tang et al., "1-bit Adam: Communication Efficient Large-Scale Training with Adam's Convergence Speed", ICML 2021, sec. 4
(https://arxiv.org/abs/2102.02888), with the two error compensations of Tang et al., "DoubleSqueeze", ICML 2019, alg. 1
(https://arxiv.org/abs/1905.05957). Numbered phases; every rank owns one of ``size`` pieces of the vector:

1. a rank encodes every piece of its gradient, under error feedback, and sends it to its owner (all-to-all);
2. an owner decodes and adds up, encodes the sum, under error feedback of its own, and sends it to all (allgather);
3. a rank decodes the sums: all ranks get the same bits.

A rank sends 2 (n - 1) / n payloads of the whole vector, whatever the number n of ranks: what an allreduce sends of the
vector itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hpcasync.compression.codecs import Codec
from hpcasync.compression.feedback import ErrorFeedback
from hpcasync.reduction import Layout, StagedReduction, together
from hpcasync.world import Stages, World

_HEADER_BYTES = 8  # in front of each payload: how many contributions are in it


class _Pieces:
    """One dtype's vector (n,), cut into a piece per rank, all equally long; the last may reach beyond the end."""

    def __init__(self, codec: Codec, layout: Layout, ranks: int) -> None:
        self.length, self.ranks = layout.length, ranks
        dtype = torch.promote_types(layout.dtype, torch.float32)
        piece = -(-layout.length // ranks)
        end = _HEADER_BYTES + codec.payload_bytes(piece, dtype)
        self._payload, self._row_bytes = slice(_HEADER_BYTES, end), -(-end // 8) * 8
        self.residuals = torch.zeros(ranks + 1, piece, dtype=dtype)  # of what I send to each rank, and of my sums
        self._feedbacks = [ErrorFeedback(codec, residual) for residual in self.residuals]
        self._codec = codec

    def rows(self, count: int) -> Tensor:
        """(count, row bytes) uint8 zeros."""
        return torch.zeros(count, self._row_bytes, dtype=torch.uint8)

    def stages(self, world: World, message: Tensor, contributions: int) -> Stages:
        """Reduce ``message`` (n + 1,)."""
        sent = self.encode(message, contributions)
        received = torch.empty_like(sent)
        yield [world.ialltoall(sent, received)]
        mine = self.combine(received)
        yield [world.iallgather(mine, received)]
        self.decode(received, message)

    def encode(self, message: Tensor, contributions: int) -> Tensor:
        """Phase 1: (size, row bytes). Without a contribution nothing is sent, of the residual neither."""
        rows = self.rows(self.ranks)
        if contributions:
            vectors = torch.zeros_like(self.residuals[:-1])
            vectors.view(-1)[: self.length] = message[:-1]
            for row, vector, feedback in zip(rows, vectors, self._feedbacks, strict=False):
                feedback.encode(vector, row[self._payload])
                row[:_HEADER_BYTES].view(torch.int64).fill_(contributions)
        return rows

    def combine(self, rows: Tensor) -> Tensor:
        """Phase 2: (size, row bytes) of my piece from all ranks -> (row bytes,), of their sum."""
        result = self.rows(1)[0]
        counts = rows[:, :_HEADER_BYTES].view(torch.int64).sum()
        if counts:
            total, part = torch.zeros_like(self.residuals[:2])
            for row in rows:
                if row[:_HEADER_BYTES].any():
                    self._codec.decode(row[self._payload], part)
                    total += part
            self._feedbacks[-1].encode(total, result[self._payload])
            result[:_HEADER_BYTES].view(torch.int64).copy_(counts)
        return result

    def decode(self, rows: Tensor, message: Tensor) -> None:
        """Phase 3: (size, row bytes) of all sums -> ``message`` (n + 1,)."""
        vectors = torch.empty_like(self.residuals[:-1])
        for row, vector in zip(rows, vectors, strict=True):
            self._codec.decode(row[self._payload], vector)
        message[:-1] = vectors.view(-1)[: self.length]
        message[-1] = rows[0, :_HEADER_BYTES].view(torch.int64)[0]


class CompressedSum(StagedReduction):
    """See the module. Every dtype of the messages has its own pieces and residuals.

    Args:
        layouts: of the messages, one per dtype.
    """

    def __init__(self, codec: Codec, layouts: Sequence[Layout], ranks: int) -> None:
        self._pieces = [_Pieces(codec, layout, ranks) for layout in layouts]

    def stages(self, world: World, messages: Sequence[Tensor]) -> Stages:
        contributions = int(messages[0][-1])
        both = zip(self._pieces, messages, strict=True)
        return together(pieces.stages(world, message, contributions) for pieces, message in both)

    def state_dict(self) -> dict[str, Any]:
        return {"residuals": [pieces.residuals.clone() for pieces in self._pieces]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for pieces, saved in zip(self._pieces, state["residuals"], strict=True):
            pieces.residuals.copy_(saved)
