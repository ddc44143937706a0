"""The codecs that the compression tests run through, and vectors for them."""

from __future__ import annotations

import torch

from hpcasync.compression import parse_compression
from hpcasync.compression.codecs import Codec

NAMES = ["fp16", "bf16", "int8", "sign", "topk:0.1"]
ALL = [*NAMES, "powersgd:2"]


def codec(name: str) -> Codec:
    found = parse_compression(name).codec
    assert found is not None
    return found


def vector(length: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, generator=generator, dtype=dtype) * 10 ** torch.randn(length, generator=generator)
