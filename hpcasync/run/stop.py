"""When a rank makes no further step: its limits, a signal, or a peer that says so."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Self

import torch

from hpcasync.run.options import Options
from hpcasync.world import World


class Signals:
    """Remembers the first SIGINT, SIGTERM or SIGUSR1, so that a rank can end at a step boundary instead of anywhere."""

    received = 0

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._before = {number: signal.signal(number, self._remember) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number


class Stop:
    """The end of a rank's steps.

    A rank that decides for all (rank 0 at the target, any rank at a signal) pushes into every rank's cell of a window;
    each looks at its own cell before each step. So a stop reaches everyone one-sidedly and costs nothing until then.
    """

    def __init__(self, world: World, options: Options, signals: Signals) -> None:
        self._world = world
        self._steps = options.steps
        self._seconds = options.seconds
        self._signals = signals
        self._told = False
        self._window = world.window(1, torch.int64)

    @property
    def told(self) -> bool:
        """True if a rank has decided for all."""
        return self._told or bool(self._window.local[0])

    def tell_all(self) -> None:
        """No rank shall begin another step."""
        if self._told:
            return
        self._told = True
        one = torch.ones(1, dtype=torch.int64)
        for rank in range(self._world.size):
            self._window.push(one, rank)
        self._window.flush()

    def reached(self, steps: int, seconds: float) -> bool:
        """Asked before each step: ``steps`` made so far, ``seconds`` since the first."""
        if self._signals.received:
            self.tell_all()
        return (
            self.told
            or (self._steps is not None and steps >= self._steps)
            or (self._seconds is not None and seconds >= self._seconds)
        )
