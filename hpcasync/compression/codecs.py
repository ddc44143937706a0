"""Codecs: a vector as fewer bytes, and back. Each loses something; ``ErrorFeedback`` makes up for it later.

A codec with contraction delta keeps ||v - decode(encode(v))||^2 <= (1 - delta) ||v||^2, which is all that error
feedback needs to converge (Karimireddy et al. 2019, https://arxiv.org/abs/1901.09847, assumption A).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 1024  # elements that share a scale, which then costs 1/32 of a bit per element


class Codec(Protocol):
    """Payloads of a vector of length n are (payload_bytes(n, dtype),) uint8, and begin at a multiple of 8 bytes.

    A payload of zeros decodes to zeros.
    """

    def payload_bytes(self, length: int, dtype: torch.dtype) -> int: ...

    def encode(self, vector: Tensor, payload: Tensor) -> None:
        """Fill ``payload`` with what is kept of ``vector`` (n,), float32 or float64."""
        ...

    def decode(self, payload: Tensor, vector: Tensor) -> None:
        """Overwrite ``vector`` (n,) with what ``payload`` has kept of it."""
        ...


@dataclass(frozen=True)
class Half:
    """Every element rounded to a half type: float16 (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740) or
    bfloat16 (Kalamkar et al. 2019, https://arxiv.org/abs/1905.12322). What float16 cannot hold becomes its largest."""

    dtype: torch.dtype

    def payload_bytes(self, length: int, dtype: torch.dtype) -> int:
        return 2 * length

    def encode(self, vector: Tensor, payload: Tensor) -> None:
        largest = torch.finfo(self.dtype).max
        payload.view(self.dtype).copy_(vector.clamp(-largest, largest))

    def decode(self, payload: Tensor, vector: Tensor) -> None:
        vector.copy_(payload.view(self.dtype))


@dataclass(frozen=True)
class Int8:
    """Every element as the nearest of 255 levels between plus and minus the largest magnitude of its block of 1024.

    Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", ICLR 2016 (https://arxiv.org/abs/1511.04561),
    with linear levels. Rounding is deterministic, to the nearest: error feedback makes randomness unnecessary. An
    element is off by at most max / 254, so 1 - delta = BLOCK / 254^2 = 0.016.
    """

    def payload_bytes(self, length: int, dtype: torch.dtype) -> int:
        return 4 * _count(length) + length

    def encode(self, vector: Tensor, payload: Tensor) -> None:
        blocks, (scales, levels) = _blocks(vector), self._parts(payload, len(vector))
        scales.copy_(blocks.abs().amax(dim=1) / 127)
        inverse = scales.to(vector.dtype).reciprocal().nan_to_num(posinf=0.0)
        levels.copy_((blocks * inverse[:, None]).round_().clamp_(-127, 127).view(-1)[: len(vector)])

    def decode(self, payload: Tensor, vector: Tensor) -> None:
        scales, levels = self._parts(payload, len(vector))
        vector.copy_(levels)
        _scale(vector, scales)

    def _parts(self, payload: Tensor, length: int) -> tuple[Tensor, Tensor]:
        start = 4 * _count(length)
        return payload[:start].view(torch.float32), payload[start:].view(torch.int8)


@dataclass(frozen=True)
class Sign:
    """One bit per element, its sign, times the mean magnitude of its block of 1024.

    Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014; Bernstein et al. 2018 (signSGD); with this
    scale Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019, alg. 2 (https://arxiv.org/abs/1901.09847), and
    in blocks Zheng et al. 2019 (https://arxiv.org/abs/1905.10936). In a block of n, delta = ||v||_1^2 / (n ||v||_2^2).
    """

    def payload_bytes(self, length: int, dtype: torch.dtype) -> int:
        return 4 * _count(length) + -(-length // 8)

    def encode(self, vector: Tensor, payload: Tensor) -> None:
        blocks, (scales, bits) = _blocks(vector), self._parts(payload, len(vector))
        lengths = torch.full((len(blocks),), BLOCK)
        lengths[-1] = len(vector) - BLOCK * (len(blocks) - 1)
        scales.copy_(blocks.abs().sum(dim=1) / lengths)
        bits.copy_(torch.from_numpy(np.packbits((vector >= 0).numpy())))

    def decode(self, payload: Tensor, vector: Tensor) -> None:
        scales, bits = self._parts(payload, len(vector))
        vector.copy_(torch.from_numpy(np.unpackbits(bits.numpy(), count=len(vector))))
        vector.mul_(2).sub_(1)
        _scale(vector, scales)

    def _parts(self, payload: Tensor, length: int) -> tuple[Tensor, Tensor]:
        start = 4 * _count(length)
        return payload[:start].view(torch.float32), payload[start:]


@dataclass(frozen=True)
class TopK:
    """The share ``ratio`` of the elements with the largest magnitudes, as they are, with their places.

    Stich et al., "Sparsified SGD with Memory", NeurIPS 2018 (https://arxiv.org/abs/1809.07599): delta = k / n.
    """

    ratio: float

    def payload_bytes(self, length: int, dtype: torch.dtype) -> int:
        return (dtype.itemsize + 4) * self._kept(length)

    def encode(self, vector: Tensor, payload: Tensor) -> None:
        values, places = self._parts(payload, vector)
        largest = vector.abs().topk(len(values), sorted=False).indices
        values.copy_(vector[largest])
        places.copy_(largest)

    def decode(self, payload: Tensor, vector: Tensor) -> None:
        values, places = self._parts(payload, vector)
        vector.zero_().index_copy_(0, places.long(), values)

    def _kept(self, length: int) -> int:
        return min(length, max(1, round(self.ratio * length)))

    def _parts(self, payload: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        start = like.itemsize * self._kept(len(like))
        return payload[:start].view(like.dtype), payload[start:].view(torch.int32)


def _count(length: int) -> int:
    return -(-length // BLOCK)


def _blocks(vector: Tensor) -> Tensor:
    """(ceil(n / BLOCK), BLOCK) ``vector``, with zeros behind it if need be."""
    missing = -len(vector) % BLOCK
    return (F.pad(vector, (0, missing)) if missing else vector).view(-1, BLOCK)


def _scale(vector: Tensor, scales: Tensor) -> None:
    """Multiply each block of ``vector`` by its scale, in place."""
    whole = len(vector) // BLOCK
    vector[: whole * BLOCK].view(-1, BLOCK).mul_(scales[:whole, None])
    if whole < len(scales):
        vector[whole * BLOCK :].mul_(scales[whole])
