"""A line at the bottom of a terminal that is redrawn in place; other lines appear above it."""

from __future__ import annotations

import os
from typing import TextIO

from rich.cells import cell_len, set_cell_size

_COLUMNS = 80  # where the terminal does not say
_ERASE = "\r\x1b[K"


def can_move(stream: TextIO) -> bool:
    """Does ``stream`` end in a terminal that can erase a line?"""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def put(stream: TextIO, text: str) -> None:
    """Write ``text``, whose surrogates stand for bytes that are no UTF-8; nothing stays in a buffer when that fails."""
    stream.flush()
    rest = text.encode("utf-8", "surrogateescape")
    while rest:
        rest = rest[os.write(stream.fileno(), rest) :]


class MovingLine:
    """The line on ``stream``, which :func:`can_move`. A program in the background draws nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn = False

    def draw(self, text: str) -> None:
        """Replace the line by ``text``, cut to the terminal's width."""
        if not self._in_foreground():
            return
        printable = "".join(character if character.isprintable() else "?" for character in text)
        room = min(cell_len(printable), self._columns() - 1)  # a character in the last column may wrap
        put(self._stream, _ERASE + set_cell_size(printable, room))
        self._drawn = True

    def erase(self) -> None:
        """Leave the cursor where the line was: what is printed next takes its place."""
        if self._drawn:
            put(self._stream, _ERASE)
            self._drawn = False

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or _COLUMNS
        except OSError:
            return _COLUMNS

    def _in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._stream.fileno()) == os.getpgrp()
        except OSError:
            return True  # it is not this session's terminal
