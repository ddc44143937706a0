"""Moniqua: neighbours whose parameters are alike need not send them whole; the remainder of a division suffices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcasync.errors import UsageError


@dataclass(frozen=True)
class Moniqua:
    """A codec for gossip, whose decoder knows roughly what was sent: its own parameters.

        q = round(x / B mod 1),   x_hat = ((q B - y) mod B) + y,   B = 2 theta / (1 - 2 delta)

    Lu and De Sa, "Moniqua: Modulo Quantized Communication in Decentralized SGD", ICML 2020, alg. 1 and lemma 1
    (https://arxiv.org/abs/2002.11787); z mod B lies in [-B/2, B/2), and rounding to the middles of 2^bits intervals has
    delta = 2^-bits / 2. If |x - y| < theta in every element, the error is at most delta B in every element. It needs no
    error feedback and no memory, but neighbours that differ by theta or more misread each other by multiples of B.

    Args:
        theta: bound on the difference of two neighbours' parameters, element by element.
        bits: per element; 1, 2, 4 or 8.

    Raises:
        UsageError: another number of bits, or a theta that is not positive.
    """

    theta: float
    bits: int = 8

    def __post_init__(self) -> None:
        if self.bits not in (1, 2, 4, 8):
            raise UsageError(f"bits={self.bits}: it is 1, 2, 4 or 8")
        if not 0 < self.theta < float("inf"):
            raise UsageError(f"theta={self.theta}: it bounds a difference, so it is above 0")

    @property
    def levels(self) -> int:
        return int(2**self.bits)

    @property
    def modulus(self) -> float:
        """B."""
        return 2 * self.theta / (1 - 1 / self.levels)

    @property
    def error(self) -> float:
        """delta B: the most by which an element is off."""
        return self.modulus / (2 * self.levels)

    def payload_bytes(self, length: int) -> int:
        return -(-length * self.bits // 8)

    def encode(self, vector: Tensor) -> Tensor:
        """(n,) float32 or float64 -> (payload_bytes(n),) uint8."""
        share = (vector.double() / self.modulus).remainder_(1)
        levels = (share * self.levels).floor_().clamp_(max=self.levels - 1).to(torch.uint8)
        per_byte = 8 // self.bits
        packed = torch.zeros(self.payload_bytes(len(vector)), dtype=torch.uint8)
        for place in range(per_byte):
            part = levels[place::per_byte]
            packed[: len(part)] |= part << (self.bits * place)
        return packed

    def decode(self, payload: Tensor, mine: Tensor) -> Tensor:
        """(payload_bytes(n),) uint8, (n,) what it is near to -> (n,) what was sent, off by ``error`` at most.

        To be free of a bias a rank also takes its own parameters as the others see them: ``decode(encode(x), x)``.
        """
        per_byte = 8 // self.bits
        levels = torch.empty(len(payload), per_byte, dtype=torch.uint8)
        for place in range(per_byte):
            levels[:, place] = (payload >> (self.bits * place)) & (self.levels - 1)
        sent = (levels.view(-1)[: len(mine)].double() + 0.5) * (self.modulus / self.levels)
        wide = mine.double()
        difference = (sent - wide + self.modulus / 2).remainder_(self.modulus) - self.modulus / 2
        return (wide + difference).to(mine.dtype)
