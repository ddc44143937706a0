"""One rank's part of a window, in memory that its node shares: where it lies, and how it is changed.

Layout: one robust mutex of 64 bytes per stripe, then the elements. Whoever adds to a stripe or takes from it holds its
mutex, so additions add up and nothing is taken twice; reading takes no lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcasync.mpi.mutex import BYTES, Mutex
from hpcasync.world import HALF_TYPES

STRIPE = 1 << 18  # elements per mutex: 1 MB of float32, long enough that a lock costs nothing beside the addition

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


def segment_bytes(length: int, dtype: torch.dtype) -> int:
    """How much memory a :class:`Segment` of ``length`` elements needs."""
    return _stripes(length) * BYTES + length * dtype.itemsize


class Segment:
    """A rank's part as seen by a rank of its node: ``elements`` (n,), a view of the owner's memory.

    Args:
        memory: at least ``segment_bytes(length, dtype)`` bytes.
        first: with which stripe to begin. Ranks that change one part at the same time begin at different stripes, so
            they do not queue up.
    """

    def __init__(self, memory: Bytes, length: int, dtype: torch.dtype, first: int) -> None:
        self._mutexes = [Mutex(memory.ctypes.data + i * BYTES) for i in range(_stripes(length))]
        start = _stripes(length) * BYTES
        self.elements = torch.from_numpy(memory[start : start + length * dtype.itemsize]).view(dtype)
        self._array = _array(self.elements)
        self._first = first

    def create_mutexes(self) -> None:
        """By the owner, before any other reaches this part."""
        for mutex in self._mutexes:
            mutex.create()

    def add(self, source: Tensor, offset: int) -> None:
        """Add ``source`` (m,) into elements [offset, offset + m)."""
        addend = _array(source)
        for stripe, start, stop in self._pieces(offset, offset + source.numel()):
            with self._mutexes[stripe]:
                total = self._array[start:stop]
                total += addend[start - offset : stop - offset]

    def read(self, target: Tensor, offset: int) -> None:
        """Copy elements [offset, offset + m) into ``target`` (m,)."""
        _array(target)[:] = self._array[offset : offset + target.numel()]

    def take(self, target: Tensor, offset: int) -> None:
        """Copy elements [offset, offset + m) into ``target`` (m,) and leave zeros."""
        taken = _array(target)
        for stripe, start, stop in self._pieces(offset, offset + target.numel()):
            with self._mutexes[stripe]:
                taken[start - offset : stop - offset] = self._array[start:stop]
                self._array[start:stop] = 0

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(stripe, a, b) for the pieces [a, b) of [start, stop), from the ``first`` on and round."""
        numbers = range(start // STRIPE, -(-stop // STRIPE))
        for i in range(len(numbers)):
            stripe = numbers[(i + self._first) % len(numbers)]
            yield stripe, max(start, stripe * STRIPE), min(stop, (stripe + 1) * STRIPE)


def _array(tensor: Tensor) -> Any:
    """The same memory for NumPy, which needs 2 µs for a piece of it where PyTorch needs 10; a half type's as it is."""
    return tensor if tensor.dtype in HALF_TYPES else tensor.numpy()


def _stripes(length: int) -> int:
    return -(-length // STRIPE)
