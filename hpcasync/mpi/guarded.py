"""What a rank tells the guard that `hpcasync run` has put around it (hpcasync/launch/guard.py); nothing elsewhere."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

OPTION = "HPCASYNC_GUARD"  # the file descriptor that the guard reads
_UP, _LEAVING = b"u", b"l"


def _descriptor() -> int | None:
    """The guard's, which the processes that this one starts do not get."""
    given = os.environ.pop(OPTION, "")
    with suppress(OSError, ValueError):
        if stat.S_ISFIFO(os.fstat(int(given)).st_mode):
            os.set_inheritable(int(given), False)
            return int(given)
    return None


_GUARD = _descriptor()


def say_up() -> None:
    """MPI has started."""
    _say(_UP)


def say_leaving() -> None:
    """This process is about to leave with an exit code of which the others need not hear."""
    _say(_LEAVING)


def _say(word: bytes) -> None:
    if _GUARD is not None:
        with suppress(OSError):
            os.write(_GUARD, word)
