"""Run the launcher: pass its output through, pass signals on, return its exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from hpcasync.launch.boxes import Boxes


def execute(argv: Sequence[str]) -> int:
    """Run ``argv`` to its end and return its exit code, or 128 + the signal that stopped it.

    The launcher gets a process group of its own, so that a Ctrl-C reaches it once and through us. The first SIGINT or
    SIGTERM asks the ranks for a clean end: it is sent as SIGUSR1, which every launcher forwards to the ranks (Open
    MPI's answers SIGINT and SIGTERM by killing them within half a second). The second is sent as it is.
    """
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", process_group=0
    ) as process:
        with _forwarding(process) as received:
            boxes = Boxes()
            assert process.stderr is not None
            for line in process.stderr:
                _show(boxes.feed(line))
            _show(boxes.rest())
            code = process.wait()
        return 128 + received[0] if received else code if code >= 0 else 128 - code


def _show(lines: list[str]) -> None:
    if lines:
        sys.stderr.write("".join(lines))
        sys.stderr.flush()


@contextmanager
def _forwarding(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """Pass SIGINT, SIGTERM and SIGUSR1 on to ``process``; yields the list of SIGINT and SIGTERM received so far."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        first = not received
        if number != signal.SIGUSR1:
            received.append(number)
        process.send_signal(signal.SIGUSR1 if first else number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
