"""A rank's sign of life: a small file in the run's folder, written again and again by a thread of its own.

So the others, and `hpcasync status`, see what a rank does without its help. The file of a process that is stopped, or
of a node that is lost, does not change any more.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Pulse:
    """What a rank says about itself.

    Attributes:
        beat: counts up.
        every_seconds: between two beats.
        step: steps made so far.
        phase, verb, where: see :class:`hpcasync.stall.activity.Activity`.
        unmoved_seconds: since it last made a step or went from one phase to another, as far as it was awake.
        stack: its main thread's Python stack, once it has not moved for some time.
        host, pid, born: its process; ``born`` tells it from a later one with the same number.
    """

    rank: int
    beat: int
    every_seconds: float
    step: int
    phase: str
    verb: str
    where: str
    unmoved_seconds: float
    stack: str
    host: str
    pid: int
    born: str

    @classmethod
    def read(cls, folder: Path, rank: int) -> Self | None:
        """The last; None where there is none, or where it is being written."""
        try:
            entry = json.loads(pulse_file(folder, rank).read_text())
            return cls(**{name: kind(entry[name]) for name, kind in _TYPES.items()})
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None

    def write(self, folder: Path) -> None:
        """Raises OSError. Not atomic: a reader that sees half of it looks again later."""
        pulse_file(folder, self.rank).write_text(json.dumps(asdict(self)))

    @property
    def process_state(self) -> str:
        """ "T" for a stopped process, "" for one that is gone, "?" where it cannot be seen from this host."""
        if self.host != socket.gethostname():
            return "?"
        state, born = process(self.pid)
        return state if born == self.born else ""

    def kill(self) -> None:
        """End the process, if it is one of this host's."""
        if self.process_state not in ("", "?"):
            with suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)


_TYPES = {name: {"str": str, "int": int, "float": float}[str(kind)] for name, kind in Pulse.__annotations__.items()}


def pulse_file(folder: Path, rank: int) -> Path:
    """Where ``rank`` keeps its pulse while it runs."""
    return folder / f"pulse.rank{rank}"


def pulsing(folder: Path) -> list[int]:
    """The ranks that have a pulse in ``folder``."""
    numbers = [path.name.removeprefix("pulse.rank") for path in folder.glob("pulse.rank*")]
    return sorted(int(number) for number in numbers if number.isascii() and number.isdigit() and len(number) < 10)


def process(pid: int) -> tuple[str, str]:
    """The state of a process, one letter, and when it was born, in the kernel's ticks; both empty for none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return words[0], words[19]
