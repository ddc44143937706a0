"""Buffers that a rank has handed to its World: they read NaN until it has them back.

All accesses go through ``.data``: like MPI's, they do not count as a modification that autograd hears of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpcasync.errors import UsageError


def check_buffer(buffer: Tensor, verb: str) -> None:
    """Raises UsageError for a buffer that MPI could not read as one piece of memory."""
    if not buffer.is_contiguous():
        raise UsageError(f"{verb}: a buffer of shape {tuple(buffer.shape)} is not contiguous")


def hide(buffer: Tensor) -> Tensor:
    """A copy of ``buffer``, which then reads NaN if its dtype has one."""
    value = buffer.data.clone()
    if buffer.is_floating_point() or buffer.is_complex():
        buffer.data.fill_(torch.nan)
    return value


class Loans:
    """Buffers that are only read while in flight, so that several messages may share one: the sources of pushes."""

    def __init__(self) -> None:
        self._lent: dict[tuple[int, int], tuple[Tensor, int]] = {}  # (address, bytes): (values, messages)

    def lend(self, buffer: Tensor) -> Tensor:
        """The values of ``buffer``, which reads NaN until every loan of it has been given back."""
        key = buffer.data_ptr(), buffer.nbytes
        value, messages = self._lent.get(key) or (hide(buffer), 0)
        self._lent[key] = value, messages + 1
        return value

    def give_back(self, buffer: Tensor) -> None:
        key = buffer.data_ptr(), buffer.nbytes
        value, messages = self._lent.pop(key)
        if messages > 1:
            self._lent[key] = value, messages - 1
        else:
            buffer.data.copy_(value)
