"""What a rank says to its user, and to the launcher."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from hpcasync.launch import environment
from hpcasync.launch.boxes import WARNING


def say(line: str) -> None:
    """On standard error."""
    show(line, sys.stderr)


def show(line: str, stream: TextIO) -> None:
    """Print ``line``. Where nobody reads any more (the terminal was closed), the run still ends as it should."""
    try:
        print(line, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def warn(message: str) -> None:
    """Something is wrong, and the run goes on."""
    say(f"{WARNING}{message}")


def tell_launcher(word: str) -> None:
    """A word to `hpcasync run`, which believes no exit code; past sys.stderr, which a job may have redirected."""
    if environment.expected_ranks() is not None:
        sys.stderr.flush()
        os.write(2, f"{word}\n".encode())
