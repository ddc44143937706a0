"""The line at the bottom of a terminal, on a pseudo-terminal of a known width."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
from collections.abc import Iterator
from typing import TextIO

import pytest

from hpcasync.launch.moving_line import MovingLine, can_move, put


@pytest.fixture
def ends() -> Iterator[tuple[int, TextIO]]:
    """The terminal's side, and the program's."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
    with os.fdopen(theirs, "w") as stream:
        yield ours, stream
    os.close(ours)


def test_a_line_is_cut_redrawn_and_erased_once(ends: tuple[int, TextIO]) -> None:
    ours, stream = ends
    line = MovingLine(stream)
    line.erase()
    line.draw("step 1")
    line.draw("a\x1b[31m line of more than twenty columns")
    line.erase()
    line.erase()
    put(stream, "caf\udce9\n")
    expected = b"\r\x1b[Kstep 1\r\x1b[Ka?[31m line of more\r\x1b[Kcaf\xe9\r\n"
    seen = b""
    while len(seen) < len(expected):
        seen += os.read(ours, 1000)
    assert seen == expected


def test_wide_characters_count_twice(ends: tuple[int, TextIO]) -> None:
    ours, stream = ends
    MovingLine(stream).draw("漢" * 12)
    assert os.read(ours, 1000).decode() == "\r\x1b[K" + "漢" * 9 + " "


@pytest.mark.parametrize(("name", "moves"), [("xterm", True), ("dumb", False), (None, False)])
def test_only_a_terminal_that_can_erase_moves(
    ends: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch, name: str | None, moves: bool
) -> None:
    monkeypatch.delenv("TERM", raising=False)
    if name is not None:
        monkeypatch.setenv("TERM", name)
    assert can_move(ends[1]) == moves
    with open(os.devnull, "w") as file:  # noqa: PTH123
        assert not can_move(file)
