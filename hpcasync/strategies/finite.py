"""Keeps gradients that are not finite from leaving their rank."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from hpcasync.errors import RunFailure
from hpcasync.world import HALF_TYPES

NonFinite = Literal["drop", "stop", "allow"]
LONGEST_ROW = 100
"""Steps in a row whose gradients may be dropped: after as many the rank has diverged, and waiting will not help."""


def is_finite(vector: Tensor) -> bool:
    """True if the squares of ``vector`` (n,) have a finite sum, in float32 at least.

    One pass over the memory. The squares overflow for elements above 1.8e19, which no training survives: 1e30 in one
    element counts as not finite.
    """
    dtype = torch.float32 if vector.dtype in HALF_TYPES else None
    return math.isfinite(torch.linalg.vector_norm(vector.detach(), dtype=dtype).item())


def check_parameters(vectors: Iterable[Tensor]) -> None:
    """Raise RunFailure if one of a model's parameter ``vectors`` [(n_i,), ...] is not finite."""
    if not all(map(is_finite, vectors)):
        raise RunFailure("diverged: the parameters are not finite; a smaller --lr, or clipping, may help")


class FiniteCheck:
    """What a strategy asks before a gradient leaves its rank.

    Args:
        mode: what happens to a gradient that is not finite, or whose loss is not. ``drop``: it is not applied; where
            all ranks' gradients are reduced in lockstep it counts as zero. Gradients that wait in the same buffer go
            with it. ``stop``: :class:`hpcasync.errors.RunFailure`. ``allow``: nothing is checked.

    Attributes:
        dropped: steps of this rank of which all or, in strategies that exchange inside backward(), a part was dropped.
    """

    def __init__(self, mode: NonFinite = "drop") -> None:
        self.mode: NonFinite = mode
        self.dropped = self._row = 0
        self._bad = False

    def admit(self, gradients: Iterable[Tensor], loss: float) -> bool:
        """May a step's ``gradients`` [(n_i,), ...], of this ``loss``, leave this rank?"""
        if self.mode == "allow":
            return True
        self._bad = not (math.isfinite(loss) and all(map(is_finite, gradients)))
        return not self._bad

    def clean(self, gradient: Tensor) -> None:
        """A part of a step's ``gradient`` (n,) leaves inside backward(): as zeros, if it may not leave as it is."""
        if self.mode != "allow" and not is_finite(gradient):
            self._bad = True
            gradient.zero_()

    def end_step(self) -> None:
        """Count what the step has come to.

        Raises:
            RunFailure: nothing of it may leave in mode ``stop``; in mode ``drop``, it is the last of a row too long.
        """
        bad, self._bad = self._bad, False
        self.dropped += bad
        self._row = self._row + 1 if bad else 0
        if bad and self.mode == "stop":
            raise RunFailure("a loss or gradient is not finite (--non-finite drop leaves it out and goes on)")
        if self._row >= LONGEST_ROW:
            raise RunFailure(
                f"diverged: no loss and gradient of {LONGEST_ROW} steps in a row was finite; a smaller --lr may help"
            )
