"""When a rank makes no further step: its limits, a signal, or a peer that says so. And when it pauses."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from types import FrameType
from typing import Self

import torch

from hpcasync.launch import environment
from hpcasync.launch.boxes import EXPLANATION
from hpcasync.run.options import Options
from hpcasync.world import World

_ENDING = (signal.SIGINT, signal.SIGTERM)

# The cells of a rank's window: stop now; stop after this many steps; rank 0 has gone; a rank asks rank 0 to stop all;
# pause after this many steps, or as soon as there are more.
_NOW, _AT, _GONE, _ASKED, _PAUSE, _CELLS = range(6)


class Signals:
    """Remembers the first SIGINT, SIGTERM, SIGUSR1 or SIGHUP, so that a rank can end at a step boundary instead of
    anywhere. Where SIGHUP is ignored (nohup), it stays so.

    A second SIGINT or SIGTERM ends a process that no launcher has started at once.
    """

    received = 0

    def __enter__(self) -> Self:
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
        numbers += [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN)
        self._before = {number: signal.signal(number, self._remember) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if number in _ENDING and environment.launched_by() is None:  # else a launcher may pass one signal on twice
            for each in _ENDING:
                signal.signal(each, signal.SIG_DFL)
            os.write(2, f"{EXPLANATION}stopping after this step; once more to end at once\n".encode())


class Stop:
    """The end of a rank's steps.

    A rank that decides for all (rank 0 at the target, any rank at a signal) pushes into every rank's window; each looks
    at its own before each step. So a stop reaches everyone one-sidedly and costs nothing until then.

    Ranks that make the same updates shall stop after the same step, so that nothing but the time is lost by a
    checkpoint. They ask rank 0, and it announces a step that none of them can have made: another rank is at most
    ``ahead`` steps ahead of it, and needs it for the next, by when the announcement has arrived.

    Rank 0 has all ranks pause for a checkpoint by the same means: now, or after the same step.

    Args:
        ahead: by how many steps ranks can be ahead of each other; None where each goes at its own speed.
    """

    def __init__(self, world: World, options: Options, signals: Signals, ahead: int | None) -> None:
        self._world, self._signals, self._ahead = world, signals, ahead
        self._every, self._due = options.checkpoint_every, 0.0  # the seconds at which a pause is due; 0: not known yet
        self._steps, self._seconds = options.steps, options.seconds
        self._said: set[int] = set()
        self._window = world.window(_CELLS, torch.int64)

    @property
    def told(self) -> bool:
        """True if a rank has decided for all."""
        return _NOW in self._said or bool(self._window.local[_NOW])

    def tell_all(self) -> None:
        """No rank shall begin another step."""
        self._say(_NOW, 1, range(self._world.size))

    def reached(self, steps: int, seconds: float) -> bool:
        """Asked before each step: ``steps`` made so far, ``seconds`` since the first."""
        if self._signals.received:
            self._interrupt(steps)
        elif self._asked:
            self._announce(steps)
        announced = int(self._window.local[_AT])
        return (
            self.told
            or 0 < announced <= steps
            or (self._steps is not None and steps >= self._steps)
            or (self._seconds is not None and seconds >= self._seconds)
        )

    def pauses(self, steps: int, seconds: float) -> bool:
        """Asked when the end is not :meth:`reached`: shall this rank pause before its next step?"""
        if self._every is None:
            return False
        if self._world.rank == 0:
            self._due = self._due or seconds + self._every
            if seconds >= self._due:
                self._say(_PAUSE, 1 if self._ahead is None else steps + self._ahead + 1, range(self._world.size))
        return 0 < int(self._window.local[_PAUSE]) <= steps

    def go_on(self) -> None:
        """By every rank when all have come to the pause, before any has gone on."""
        self._window.local[_PAUSE] = 0
        self._said.discard(_PAUSE)
        self._due = 0.0

    def leave(self) -> None:
        """This rank makes no further step, and listens no more."""
        if self._ahead is not None and self._world.rank == 0:
            self._say(_GONE, 1, range(self._world.size))
            if self._asked:
                self.tell_all()

    @property
    def _asked(self) -> bool:
        return bool(self._window.local[_ASKED])

    def _interrupt(self, steps: int) -> None:
        if self._ahead is None or bool(self._window.local[_GONE]):
            self.tell_all()
        elif self._world.rank == 0:
            self._announce(steps)
        else:
            self._say(_ASKED, 1, [0])

    def _announce(self, steps: int) -> None:
        assert self._ahead is not None
        self._say(_AT, steps + self._ahead + 1, range(self._world.size))

    def _say(self, cell: int, value: int, ranks: Iterable[int]) -> None:
        """Push ``value`` into the ``cell`` of ``ranks``, once."""
        if cell in self._said:
            return
        self._said.add(cell)
        content = torch.tensor([value])
        for rank in ranks:
            self._window.push(content, rank, cell)
        self._window.flush()
