"""What a rank says to its user, and to the launcher, on standard error."""

from __future__ import annotations

import sys

from hpcasync.launch.boxes import WARNING


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Something is wrong, and the run goes on."""
    say(f"{WARNING}{message}")
