"""What a rank says to its user, and to the launcher, on standard error."""

from __future__ import annotations

import os
import sys

from hpcasync.launch import environment
from hpcasync.launch.boxes import WARNING


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Something is wrong, and the run goes on."""
    say(f"{WARNING}{message}")


def tell_launcher(word: str) -> None:
    """A word to `hpcasync run`, which believes no exit code; past sys.stderr, which a job may have redirected."""
    if environment.expected_ranks() is not None:
        sys.stderr.flush()
        os.write(2, f"{word}\n".encode())
