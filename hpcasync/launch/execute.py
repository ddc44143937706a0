"""Run the launcher: pass its output through, pass signals on, return its exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from hpcasync.launch.boxes import EXPLANATION, Boxes

REQUEUE = 85  # the exit code of a run that SIGUSR1 has stopped: it wants to be started again, with --resume
END_SECONDS = 60.0  # from a rank's last word to the launcher's end
KILL_SECONDS = 10.0  # from the request to end to the end


def exit_code(signalled: int) -> int:
    """Of a run that this signal has stopped (0: none has)."""
    if signalled == signal.SIGUSR1:
        return REQUEUE
    return 128 + signalled if signalled else 0


def execute(argv: Sequence[str], survivable: bool = False) -> int:
    """Run ``argv`` to its end and return its exit code, or 128 + the signal that stopped it.

    A launcher that lets ranks survive others has exit codes that mean little, 0 when all ranks were killed and 137 when
    one was and the rest finished; and now and then it does not end. So a rank's word counts: after DONE the code is 0,
    without any word (see ``boxes``) it is not, and a minute after the word the launcher is ended.

    The launcher gets a process group of its own, so that a Ctrl-C reaches it once and through us. The first SIGINT or
    SIGTERM asks the ranks for a clean end: it is sent as SIGUSR1, which every launcher forwards to the ranks (Open
    MPI's answers SIGINT and SIGTERM by killing them within half a second). The second is sent as it is.
    """
    boxes = Boxes()
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", process_group=0
    ) as process:
        ending = threading.Timer(END_SECONDS, _end, [process])
        ending.daemon = True
        with _forwarding(process) as received:
            assert process.stderr is not None
            for line in process.stderr:
                _show(boxes.feed(line))
                if boxes.is_over and not ending.is_alive():
                    ending.start()
            _show(boxes.rest())
            code = process.wait()
        ending.cancel()
    if received:
        return 128 + received[0]
    if boxes.is_done:
        return 0
    if boxes.stopped_by is not None:
        return exit_code(boxes.stopped_by)
    if code == 0 and survivable:
        _show(
            [f"{EXPLANATION}error: the ranks have ended, and none has said that the run is done\n"]
            * (not boxes.is_over)
        )
        return 1
    return code if code >= 0 else 128 - code


def _end(process: subprocess.Popen[str]) -> None:
    """End a launcher that does not end by itself."""
    process.terminate()
    try:
        process.wait(KILL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


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
