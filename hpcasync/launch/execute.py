"""Run the launcher: show its output, pass signals on, return its exit code."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from hpcasync.launch.boxes import ERROR, EXPLANATION, Boxes
from hpcasync.launch.command import DEAF
from hpcasync.launch.display import Display
from hpcasync.launch.leftovers import shared_files, sweep
from hpcasync.launch.relay import relay

TIED = (sys.executable, "-ES", str(Path(__file__).with_name("tied.py")))
REQUEUE = 85  # the exit code of a run that SIGUSR1 has stopped: it wants to be started again, with --resume
CLOSE_SECONDS = 10.0  # from the word that the run's files are complete to the launcher's end
FAIL_SECONDS = 60.0  # from another last word of a rank to the launcher's end
KILL_SECONDS = 10.0  # from the request to end to the end
FORCE_SECONDS = 3.0  # the same when the user has asked twice


def exit_code(signalled: int) -> int:
    """Of a run that this signal has stopped (0: none has)."""
    if signalled == signal.SIGUSR1:
        return REQUEUE
    return 128 + signalled if signalled else 0


def execute(argv: Sequence[str], display: Display, survivable: bool = False) -> int:
    """Run ``argv`` to its end and return its exit code, or 128 + the signal that stopped it.

    A launcher that lets ranks survive others has exit codes that mean little, 0 when all ranks were killed and 137 when
    one was and the rest finished; and now and then it does not end. So a rank's word counts: after DONE the code is 0,
    without any word (see ``boxes``) it is not, and some time after the word the launcher is ended.

    The launcher gets a process group of its own, so that a Ctrl-C reaches it once and through us. It ends when this
    process is killed. Shared memory of ranks that were killed, now or in an earlier run, is freed.
    """
    sweep()
    before = shared_files()
    with subprocess.Popen(
        _tied(argv, survivable),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if display.moves else None,
        stderr=subprocess.PIPE,
        process_group=0,
    ) as process:
        started = _Started(process, display)
        with started.signals():
            started.follow()
            code = process.wait()
    sweep(spared=before, older_seconds=0)
    boxes = started.boxes
    if boxes.asked_by is not None:
        return exit_code(boxes.asked_by)
    if boxes.is_done:
        return 0
    if boxes.stopped_by is not None:
        return exit_code(boxes.stopped_by)
    if boxes.is_hopeless:
        return 1
    code = code if code >= 0 else 128 - code
    if not boxes.is_over and (survivable or code):
        why = f" (exit code {code} of the launcher)" if code else ": does the job call hpcasync.run.main()?"
        display.show(sys.stderr, [f"{ERROR}the ranks have ended, and none has said that the run is done{why}\n"])
    return code or int(survivable)


def _tied(argv: Sequence[str], survivable: bool) -> list[str]:
    """``argv``, so that it ends with this process.

    Open MPI's launcher answers SIGTERM by killing its ranks and cleaning up. MPICH's only passes it on, and in a Slurm
    job it is blocked (``deaf``); killed, they leave ranks behind that see it and end.
    """
    gently = survivable and tuple(argv[: len(DEAF)]) != DEAF
    return [*TIED, "TERM" if gently else "KILL", str(os.getpid()), *argv]


class _Started:
    """A launcher that runs, and what its ranks and the user have said."""

    def __init__(self, process: subprocess.Popen[bytes], display: Display) -> None:
        self.boxes = Boxes()
        self._process, self._display = process, display
        self._due: dict[signal.Signals, float] = {}  # when to send it to the launcher, by time.monotonic()
        self._ending = self._announced = self._answered = False
        self._cut_off = False  # ended by us after a run's end: what it says about that is of no interest

    def follow(self) -> None:
        """Show what comes until the launcher has ended, and see to it that it does."""
        for stream, lines in relay(self._process):
            self._answer()
            shown = [each for line in lines for each in self.boxes.feed(line)] if stream is sys.stderr else lines
            if not self._cut_off:
                self._display.show(stream, shown)
            self._go_on()
            self._display.tick(self.boxes.up, self.boxes.is_over)
        if not self._cut_off:
            self._display.show(sys.stderr, self.boxes.rest())
        self._display.close()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """The first SIGINT, SIGTERM or SIGHUP asks the ranks for a clean end.

        It is sent as SIGUSR1, which every launcher forwards to the ranks (Open MPI's answers SIGINT and SIGTERM by
        killing them within half a second). Ranks that do not train yet have nothing to save: they are ended. A second
        SIGINT or SIGTERM ends all at once; a second SIGHUP does not: shell and kernel send one each when a terminal is
        closed. Where SIGHUP is ignored (nohup), it stays so.
        """
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        boxes = self.boxes
        if number == signal.SIGUSR1:
            self._process.send_signal(number)
        elif boxes.asked_by is None:
            boxes.asked_by = signal.Signals(number)
            self._process.send_signal(signal.SIGUSR1 if boxes.folder is not None else signal.SIGTERM)
            if boxes.folder is None:
                self._plan(signal.SIGKILL, KILL_SECONDS)
        elif number != signal.SIGHUP:
            self._process.send_signal(number)
            self._plan(signal.SIGKILL, FORCE_SECONDS)

    def _plan(self, number: signal.Signals, seconds: float) -> None:
        """Send the launcher this signal after so many seconds, if that is not due earlier."""
        self._due[number] = min(self._due.get(number, math.inf), time.monotonic() + seconds)

    def _answer(self) -> None:
        """To the user's signal, before the ranks do."""
        boxes = self.boxes
        if boxes.asked_by is not None and not self._answered:
            self._answered = True
            training = "the ranks write a checkpoint and end; a second Ctrl-C or SIGTERM ends them now"
            how = training if boxes.folder is not None else "the ranks are ended before they have trained"
            self._display.show(sys.stderr, [f"{EXPLANATION}{boxes.asked_by.name}: {how}\n"])

    def _go_on(self) -> None:
        boxes = self.boxes
        if boxes.folder is not None and not self._announced:
            self._announced = True
            self._display.runs(boxes.folder)
        if boxes.is_over and not self._ending:
            self._ending = True
            seconds = 0.0 if boxes.is_hopeless else CLOSE_SECONDS if self._is_written else FAIL_SECONDS
            self._plan(signal.SIGTERM, seconds)
            self._plan(signal.SIGKILL, seconds + KILL_SECONDS)
        for number in [number for number, due in self._due.items() if time.monotonic() >= due]:
            del self._due[number]
            self._cut_off = self._cut_off or self._is_written
            self._process.send_signal(number)

    @property
    def _is_written(self) -> bool:
        """The run's files are complete."""
        return self.boxes.is_done or self.boxes.stopped_by is not None
