"""Injected faults: a World around a World in which some ranks compute more slowly than they could, or die.

The lost time is slept, not computed, so it costs no core: four ranks on two cores can stand for four equal machines,
one of them four times slower. Simulated ranks have no time to sleep; there the same options give the compute law.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcasync.errors import UsageError
from hpcasync.laws import Law
from hpcasync.world import World


def parse_slow(words: Sequence[str]) -> dict[int, float]:
    """``["3:4", "1:2,2:1.5"]`` as {rank: factor}.

    Raises:
        UsageError: a word that is not RANK:FACTOR, a factor below 1, a rank given twice.
    """
    slow: dict[int, float] = {}
    for word in ",".join(words).split(",") if words else []:
        rank, colon, factor = word.partition(":")
        if not (colon and rank.isascii() and rank.isdigit()):
            raise UsageError(f"--slow {word}: write RANK:FACTOR, for example 3:4")
        if int(rank) in slow:
            raise UsageError(f"--slow {word}: rank {int(rank)} is given twice")
        slow[int(rank)] = _factor(word, factor)
    return slow


def parse_kill(words: Sequence[str]) -> dict[int, int]:
    """``["2:20", "0:5,1:9"]`` as {rank: step}.

    Raises:
        UsageError: a word that is not RANK:STEP, a step below 1, a rank given twice.
    """
    kill: dict[int, int] = {}
    for word in ",".join(words).split(",") if words else []:
        rank, _, step = word.partition(":")
        if not all(part.isascii() and part.isdigit() for part in (rank, step)) or int(step) < 1:
            raise UsageError(f"--kill {word}: write RANK:STEP, for example 2:20; steps count from 1")
        if int(rank) in kill:
            raise UsageError(f"--kill {word}: rank {int(rank)} is given twice")
        kill[int(rank)] = int(step)
    return kill


def check_kill(kill: Mapping[int, int], size: int) -> None:
    """Raises UsageError for a rank to die outside a world of ``size``."""
    for rank in kill:
        if rank >= size:
            raise UsageError(f"--kill {rank}:{kill[rank]}: the ranks are 0 to {size - 1}")


def _factor(word: str, text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        raise UsageError(f"--slow {word}: {text!r} is not a number") from None
    if not (1 <= factor < math.inf):
        raise UsageError(f"--slow {word}: the factor is {text}; it must be 1 or more")
    return factor


@dataclass(frozen=True)
class Pace:
    """How long steps take: ``seconds`` · the rank's factor in ``slow`` · a draw of ``jitter``. A compute law itself."""

    seconds: float
    slow: Mapping[int, float] = field(default_factory=dict)
    jitter: Law | None = None

    def check(self, size: int) -> None:
        """Raises UsageError for a slow rank outside a world of ``size``."""
        for rank in self.slow:
            if rank >= size:
                raise UsageError(f"--slow {rank}:{self.slow[rank]:g}: the ranks are 0 to {size - 1}")

    def factor(self, rng: np.random.Generator, rank: int, step: int) -> float:
        """How many times longer than usual this step of this rank takes."""
        drawn = self.jitter.draw(rng, rank, step) if self.jitter is not None else 1.0
        return self.slow.get(rank, 1.0) * drawn

    def draw(self, rng: np.random.Generator, rank: int, step: int) -> float:
        """Seconds of this step of this rank."""
        return self.seconds * self.factor(rng, rank, step)


class Faults:
    """A World in which a step takes at least ``step_seconds``, times a factor per rank, times a random factor.

    Whatever is not about compute time is the inner World's.

    Args:
        slow: {rank: factor}; factor 4 makes the rank's steps take four times as long.
        jitter: a law whose draws multiply the time of each step. A step is never shorter than its real computation.
        step_seconds: what a step is padded to before the factors, so that ranks may outnumber the cores.
        kill: {rank: step}; the rank sends itself SIGKILL when it has computed that step, the first being 1.

    Raises:
        UsageError: a rank outside the world.
    """

    def __init__(
        self,
        world: World,
        slow: Mapping[int, float],
        jitter: Law | None = None,
        step_seconds: float = 0.0,
        seed: int = 0,
        kill: Mapping[int, int] | None = None,
    ) -> None:
        self._world = world
        self._pace = Pace(step_seconds, slow, jitter)
        self._pace.check(world.size)
        check_kill(kill or {}, world.size)
        self._dies_at = (kill or {}).get(world.rank)
        self._rank = world.rank  # as numbered at the start: a rank stays as slow as it was when others have died
        self._rng = np.random.default_rng((seed, world.rank))
        self._step = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def computed(self, seconds: float) -> None:
        """Sleep for what the step should have taken beyond ``seconds``; then tell the inner World of the whole step."""
        base = max(seconds, self._pace.seconds)
        whole = base * self._pace.factor(self._rng, self._rank, self._step)
        self._step += 1
        if whole > seconds:
            time.sleep(whole - seconds)
        if self._step == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self._world.computed(max(whole, seconds))

    def shrink(self) -> World:
        """The survivors' World, each rank as slow as before."""
        self._world = self._world.shrink()
        return self
