"""A count of arrivals that makes one of those who arrive act for all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcasync.world import World

_CELL, _ALL = range(2)
_TOKEN = 1 << 40  # lies in the cell while nobody acts, on top of the arrivals that wait


class Tally:
    """Arrivals, counted in a window of rank ``keeper``.

    Whoever arrives takes the cell, which takes it away from all others. If that brings the token and enough arrivals,
    it acts for them, and gives the token back afterwards; else it puts back what it has taken. So never two act at the
    same time, and no arrival is forgotten, but two that arrive at the same instant may leave acting to the next.
    """

    def __init__(self, world: World, keeper: int) -> None:
        self._keeper = keeper
        self._window = world.window(2, torch.int64)
        self._known = torch.zeros(2, dtype=torch.int64)
        self._window.local[_CELL] = _TOKEN

    @property
    def local(self) -> Tensor:
        """What this rank keeps, the memory itself, for a checkpoint."""
        return self._window.local

    def so_far(self) -> int:
        """All arrivals so far."""
        self._window.pull(self._known, self._keeper)
        self._window.flush()
        return int(self._known[_ALL])

    def arrive(self, enough: int) -> bool:
        """Count one more. True: ``enough`` or more wait, and this rank acts for them until it calls :meth:`done`."""
        cell = self._known[:1]
        self._add(1, 1)
        self._window.take(cell, self._keeper, _CELL)
        self._window.flush()
        acts = int(cell) >= _TOKEN + enough
        if not acts:
            self._add(int(cell), 0)
        return acts

    def done(self) -> None:
        """Give the token back."""
        self._add(_TOKEN, 0)

    def _add(self, cell: int, arrivals: int) -> None:
        self._window.push(torch.tensor([cell, arrivals]), self._keeper)
        self._window.flush()
