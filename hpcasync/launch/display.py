"""What the user sees while ranks run: their lines, and what is going on.

On a terminal that is a line below theirs which moves; elsewhere a plain line for each stage.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from hpcasync.errors import UsageError
from hpcasync.launch.moving_line import MovingLine, can_move, put
from hpcasync.launch.words import quoted

DRAW_SECONDS = 0.25
OBSERVE_SECONDS = 1.0  # a run writes its files about as often
_SPINNER = "|/-\\"

Observe = Callable[[Path], Callable[[], str]]


class Display:
    """Shows one run. Nothing fails when the terminal is gone: its lines are lost.

    Args:
        ranks: how many are started, of ``job``.
        observe: ``observe(folder)()`` says on one line how the run in that folder is getting on.
    """

    def __init__(self, ranks: int, job: str, observe: Observe) -> None:
        self._ranks, self._title, self._observe = ranks, f"{ranks} {'ranks' if ranks > 1 else 'rank'} of {job}", observe
        self._line = MovingLine(sys.stdout) if can_move(sys.stdout) else None
        self._started, self._drawn = time.monotonic(), 0.0
        self._look: Callable[[], str] | None = None  # once there is a folder
        self._seen, self._looked = "", 0.0
        self._frame = 0
        if self._line is None:
            self.show(sys.stdout, [f"starting {self._title} ...\n"])

    @property
    def moves(self) -> bool:
        """There is a line that moves, so all that the ranks print has to come through here."""
        return self._line is not None

    def runs(self, folder: Path) -> None:
        """The ranks train, and write into ``folder``."""
        self._look = self._observe(folder)
        if self._line is None:
            self.show(sys.stdout, [f"training: hpcasync watch {quoted(str(folder))} shows more\n"])

    def show(self, stream: TextIO, lines: list[str]) -> None:
        """Print ``lines``, byte for byte what the ranks wrote."""
        if not lines:
            return
        text = "".join(lines)
        with suppress(OSError):
            if self._line is not None:
                self._line.erase()
                text += "" if text.endswith("\n") else "\n"
                self._drawn = 0.0
            put(stream, text)

    def tick(self, up: int, over: bool) -> None:
        """Redraw the line that moves if it is time.

        Args:
            up: so many ranks have imported the job.
            over: the run has ended, the ranks have not.
        """
        now = time.monotonic()
        if self._line is None or now - self._drawn < DRAW_SECONDS:
            return
        self._drawn = now
        self._frame = (self._frame + 1) % len(_SPINNER)
        with suppress(OSError):
            self._line.draw(
                f"{_SPINNER[self._frame]} {'waiting for the ranks to exit' if over else self._now(now, up)}"
            )

    def close(self) -> None:
        """Give the terminal back."""
        with suppress(OSError):
            if self._line is not None:
                self._line.erase()

    def _now(self, now: float, up: int) -> str:
        if self._look is None:
            what = f"{up} of {self._ranks} have imported it" if up < self._ranks else "connecting them"
            return f"starting {self._title}: {what}  {now - self._started:.0f} s"
        if now - self._looked >= OBSERVE_SECONDS:
            with suppress(UsageError):  # run.json may not be there yet, or not be seen from here
                self._seen = self._look()
            self._looked = now
        return self._seen or f"training: no step of {self._title} yet"
