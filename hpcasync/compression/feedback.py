"""Error feedback: what a codec leaves out of one message is added to the next."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcasync.compression.codecs import Codec


class ErrorFeedback:
    """A codec that remembers what it has left out.

        payload <- encode(v + residual),   residual <- (v + residual) - decode(payload)

    Seide et al. 2014; Karimireddy et al. 2019, alg. 2 (https://arxiv.org/abs/1901.09847). What was sent so far and the
    residual add up to what was given so far: with half types, int8 and top-k to the last bit of that subtraction, with
    sign to its rounding.

    Args:
        residual: (n,) zeros at first; float32 or float64.
    """

    def __init__(self, codec: Codec, residual: Tensor) -> None:
        self.codec, self.residual = codec, residual

    def encode(self, vector: Tensor, payload: Tensor) -> None:
        """Fill ``payload`` for ``vector`` (n,), which is overwritten."""
        vector.add_(self.residual)
        self.codec.encode(vector, payload)
        self.codec.decode(payload, self.residual)
        torch.sub(vector, self.residual, out=self.residual)
