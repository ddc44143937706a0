"""What ``--compress`` may name, and how a strategy uses it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hpcasync.compression.codecs import Codec, Half, Int8, Sign, TopK
from hpcasync.compression.feedback import ErrorFeedback
from hpcasync.compression.moniqua import Moniqua
from hpcasync.compression.powersgd import PowerSGD
from hpcasync.compression.summed import CompressedSum
from hpcasync.errors import UsageError
from hpcasync.reduction import Layout, Reduction

__all__ = ["CODECS", "Codec", "Compression", "ErrorFeedback", "Moniqua", "parse_compression"]

CODECS: tuple[str, ...] = ("fp16", "bf16", "int8", "sign", "topk", "powersgd")

KNOWN = "fp16, bf16, int8, sign, topk:SHARE, powersgd:RANK, moniqua:THETA"
_PLAIN: dict[str, Codec] = {"fp16": Half(torch.float16), "bf16": Half(torch.bfloat16), "int8": Int8(), "sign": Sign()}


@dataclass(frozen=True)
class Compression:
    """How messages are made smaller: by a codec of vectors, by PowerSGD's products of the given rank, or by Moniqua.

    Moniqua's reader needs to know roughly what comes, so it is for gossip alone.
    """

    text: str
    codec: Codec | None = None
    rank: int = 0
    moniqua: Moniqua | None = None

    @property
    def name(self) -> str:
        """One of ``CODECS``, or moniqua."""
        return self.text.partition(":")[0]

    def reduction(self, layouts: Sequence[Layout], ranks: int) -> Reduction:
        """Sums of messages of these layouts that travel compressed; as they are among fewer than two ranks."""
        if ranks < 2:
            return Reduction()
        if self.codec is None:
            return PowerSGD(layouts, self.rank)
        return CompressedSum(self.codec, layouts, ranks)


def parse_compression(text: str) -> Compression:
    """What ``text`` names, for example "topk:0.01".

    Raises:
        UsageError: an unknown name (the message lists the known ones), or a share or rank that makes no sense.
    """
    name, colon, value = text.partition(":")
    if name in _PLAIN and not colon:
        return Compression(text, _PLAIN[name])
    if name == "topk" and colon:
        return Compression(text, TopK(_share(text, value)))
    if name == "powersgd" and colon:
        if not (value.isascii() and value.isdigit() and int(value)):
            raise UsageError(f"--compress {text}: {value!r} is no rank; write for example powersgd:2")
        return Compression(text, rank=int(value))
    if name == "moniqua" and colon:
        return Compression(text, moniqua=_moniqua(text, value))
    raise UsageError(f"--compress {text}: the known ones are {KNOWN}")


def _moniqua(text: str, value: str) -> Moniqua:
    try:
        return Moniqua(float(value))
    except (ValueError, UsageError):
        complaint = f"{value!r} is no bound on what two neighbours differ by; write for example moniqua:0.5"
        raise UsageError(f"--compress {text}: {complaint}") from None


def _share(text: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UsageError(f"--compress {text}: {value!r} is no share of the elements; write for example topk:0.01")
    return share
