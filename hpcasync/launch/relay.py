"""What a process prints, line by line, without waiting longer than a moment for any of it."""

from __future__ import annotations

import codecs
import io
import os
import selectors
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, TextIO

TICK_SECONDS = 0.1
LINGER_SECONDS = 1.0  # for the last lines of a process that has ended


def relay(process: subprocess.Popen[bytes]) -> Iterator[tuple[TextIO, list[str]]]:
    """(sys.stdout or sys.stderr, the lines that have come for it) until ``process`` has ended; nothing came: ([]).

    A carriage return ends a line, too. A process that has inherited the pipes and lives on cannot hold up the end.
    """
    with selectors.DefaultSelector() as selector:
        for pipe, stream in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            if pipe is not None:
                selector.register(pipe, selectors.EVENT_READ, _Lines(pipe, stream))
        patience = LINGER_SECONDS
        while selector.get_map() and patience > 0:
            ready = selector.select(TICK_SECONDS)
            for key, _ in ready:
                lines: _Lines = key.data
                yield lines.stream, lines.read()
                if lines.ended:
                    selector.unregister(key.fileobj)
            yield sys.stderr, []
            if not ready and process.poll() is not None:
                patience -= TICK_SECONDS


class _Lines:
    """The lines from ``pipe``, which belong on ``stream``."""

    def __init__(self, pipe: IO[bytes], stream: TextIO) -> None:
        self.stream, self.ended = stream, False
        self._fd, self._rest = pipe.fileno(), ""
        utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._decoder = io.IncrementalNewlineDecoder(utf8, translate=True)

    def read(self) -> list[str]:
        """The whole lines that are there; at the end of the pipe, also one without its end."""
        chunk = os.read(self._fd, 1 << 16)
        self.ended = not chunk
        *whole, self._rest = (self._rest + self._decoder.decode(chunk, final=self.ended)).split("\n")
        lines = [line + "\n" for line in whole]
        return [*lines, self._rest] if self.ended and self._rest else lines
