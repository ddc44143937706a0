"""What every policy is asked, and what it is told. The methods here are those of plain asynchronous SGD."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Stamp:
    """What travels with a contribution: whose it is, and the version of the parameters it was computed at.

    ``growth`` is ‖g - g'‖ / ‖x - x'‖ against this rank's contribution before; computed for Lipschitz only.
    """

    rank: int
    version: int
    growth: float = 0.0


@dataclass(frozen=True)
class Ledger:
    """What all ranks know of the updates so far; (n,) vectors have an element per rank.

    Attributes:
        version: updates made.
        active: (n,) int64, 1 for the ranks that still make steps.
        counts: (n,) int64, contributions that wait for the update they will be part of.
        growths: (n,) float64, the last :attr:`Stamp.growth` of every rank, 0 where there is none yet.
    """

    version: int
    active: Tensor
    counts: Tensor
    growths: Tensor

    def delay(self, stamp: Stamp) -> int:
        return self.version - stamp.version


@dataclass
class Memory:
    """What a rank remembers of its own contributions, for one dtype's parameters (m,).

    Attributes:
        square: (m,) running mean of g ⊙ g.
        stride: root mean square of an element of one of this rank's updates, running mean; 0 before the first.
    """

    square: Tensor
    stride: float = 0.0


@dataclass(frozen=True)
class Policy:
    """Plain asynchronous SGD: x <- x - gamma g(x_{t - delay}), each gradient an update by itself, nobody waits.

    Attributes:
        collects: an update is the mean of several contributions. By rank first where ``by_rank``.
        compares: :meth:`correct` looks at the parameters as they are now.
        decay: of the running mean :attr:`Memory.square`; None where nobody reads it.
        watches_growth: :attr:`Stamp.growth` is needed.
        patience: how long :meth:`gate` is waited for, in durations of this rank's last step.
        bound: steps that the slowest rank may be behind (see ``hpcasync.clock``).
        grace_seconds: what a complete update waits for late ranks.
    """

    collects: ClassVar[bool] = False
    by_rank: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    decay: ClassVar[float | None] = None
    watches_growth: ClassVar[bool] = False
    patience: ClassVar[float] = math.inf

    @property
    def bound(self) -> float:
        return math.inf

    @property
    def grace_seconds(self) -> float:
        return 0.0

    def gate(self, stamp: Stamp, version: int) -> bool:
        return True

    def admit(self, stamp: Stamp, ledger: Ledger) -> bool:
        return True

    def correct(self, g: Tensor, now: Tensor, then: Tensor, memory: Memory) -> Tensor:
        return g

    def weight(self, stamp: Stamp, ledger: Ledger) -> float:
        return 1.0

    def complete(self, ledger: Ledger) -> bool:
        return bool(ledger.counts.any())
