"""Looks after a run on real ranks: says which rank holds it up, and ends it when that has lasted too long.

Every rank has a thread that writes the rank's pulse and makes no MPI calls. The lowest rank with a pulse judges all of
them, so that one rank speaks, whichever of them are stuck or stopped.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from hpcasync.launch.boxes import ERROR, WARNING
from hpcasync.run.record import has_failed, mark_failed
from hpcasync.stall.activity import activity, main_thread, stack
from hpcasync.stall.judgement import Seen, Stall, judge
from hpcasync.stall.pulse import Pulse, process, pulse_file

END_FACTOR = 10  # times --stall-seconds
BEATS = 20  # in --stall-seconds
SHORTEST_SECONDS, LONGEST_SECONDS = 0.1, 3.0  # between two beats


class Watchdog:
    """The thread of one rank. Made before a barrier, so that every rank has a pulse before any trains.

    Args:
        folder: where the ranks keep their pulses; every rank sees the same.
        members: the numbers of the living ranks.
        steps: how many steps this rank has made.
        stall_seconds: without progress until it speaks; ten times as long until it ends the job.
        abort: ends all ranks with this exit code. Called in the thread, when the run's record says why.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        members: Callable[[], Iterable[int]],
        steps: Callable[[], int],
        stall_seconds: float,
        abort: Callable[[int], NoReturn],
    ) -> None:
        self._folder, self._rank, self._members, self._steps = folder, rank, members, steps
        self._stall_seconds, self._abort = stall_seconds, abort
        self._every = min(LONGEST_SECONDS, max(SHORTEST_SECONDS, stall_seconds / BEATS))
        self._born = process(os.getpid())[1]
        self._beat, self._unmoved, self._mark = 0, 0.0, (-1, "")
        self._heard: dict[int, Seen] = {}
        self._said: Stall | None = None
        self._stopped = threading.Event()
        self._beats(0.0)
        self._thread = threading.Thread(target=self._run, name="hpcasync watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """This rank has ended, and nobody shall miss its pulse."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join(LONGEST_SECONDS)  # it may be stuck in a write to a file system that hangs
        with suppress(OSError):
            pulse_file(self._folder, self._rank).unlink()

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._stopped.wait(self._every):
            now = time.monotonic()
            passed = min(now - looked, 3 * self._every)  # what a process has missed while it was stopped does not count
            looked = now
            if self._beats(passed):
                self._look(passed)

    def _beats(self, passed: float) -> bool:
        """Write the pulse. False where that is impossible: then the others' are not to be trusted, either."""
        frame = main_thread()
        doing, steps = activity(frame), self._steps()
        if (steps, doing.phase) != self._mark:
            self._mark, self._unmoved = (steps, doing.phase), 0.0
        else:
            self._unmoved += passed
        self._beat += 1
        told = stack(frame) if self._unmoved >= self._stall_seconds / 2 else ""
        del frame
        pulse = Pulse(
            rank=self._rank,
            beat=self._beat,
            every_seconds=self._every,
            step=steps,
            phase=doing.phase,
            verb=doing.verb,
            where=doing.where,
            unmoved_seconds=self._unmoved,
            stack=told,
            host=socket.gethostname(),
            pid=os.getpid(),
            born=self._born,
        )
        try:
            pulse.write(self._folder)
        except OSError:
            return False
        self._heard[self._rank] = Seen(pulse, 0.0)
        return True

    def _look(self, passed: float) -> None:
        """If no lower rank does: judge everyone, and say what has changed."""
        for rank in sorted(self._members()):
            seen = self._hear(rank, passed)
            if rank < self._rank and seen is not None and not seen.is_silent(self._stall_seconds):
                return
        living = {rank: self._heard[rank] for rank in sorted(self._members()) if rank in self._heard}
        stall = judge(living, self._stall_seconds)
        if stall is None:
            if self._said is not None:
                _say(f"{WARNING}the ranks go on: they had not moved for {self._said.seconds:.0f} s\n")
            self._said = None
        elif has_failed(self._folder):
            return  # the job is being ended, and those who are gone are not to blame
        elif stall.seconds >= END_FACTOR * self._stall_seconds:
            self._end(stall)
        elif self._said is None or self._said.culprits != stall.culprits:
            self._warn(stall)
            self._said = stall
        else:
            self._said = stall

    def _hear(self, rank: int, passed: float) -> Seen | None:
        """What is known of ``rank``; None if it has no pulse, as one that has ended."""
        if rank == self._rank:
            return self._heard[rank]
        before, pulse = self._heard.get(rank), Pulse.read(self._folder, rank)
        if pulse is None and not pulse_file(self._folder, rank).exists():
            self._heard.pop(rank, None)
            return None
        if before is not None and (pulse is None or pulse.beat == before.pulse.beat):
            self._heard[rank] = Seen(before.pulse, before.silent_seconds + passed)
        elif pulse is not None:
            self._heard[rank] = Seen(pulse, 0.0)
        return self._heard.get(rank)

    def _warn(self, stall: Stall) -> None:
        self._write(stall)
        limit = END_FACTOR * self._stall_seconds
        _say(
            f"{WARNING}stalled: {stall.line}; the run ends after {limit:g} s of this (--stall-seconds "
            f"{self._stall_seconds:g}: more for longer steps, 0 for never)\n{_indented(stall.stacks)}"
        )

    def _end(self, stall: Stall) -> None:
        self._write(stall)
        line = f"stalled: {stall.line}; if a step may take that long, raise --stall-seconds {self._stall_seconds:g}"
        mark_failed(self._folder, self._rank, line, stall.stacks)
        _say(f"{ERROR}{line}\n")
        for rank, seen in stall.everyone.items():
            if rank != self._rank:
                seen.pulse.kill()  # not all hear that the job ends: ranks remember a SIGTERM until their next step
        self._abort(1)

    def _write(self, stall: Stall) -> None:
        """Into the run's folder: the line, and every rank's stack."""
        stacks = "".join(
            f"\nrank {rank} {seen.told(stall.stall_seconds)}; unmoved for {seen.unmoved_seconds:.0f} s, step "
            f"{seen.pulse.step + 1}\n{seen.pulse.stack}"
            for rank, seen in stall.everyone.items()
        )
        with suppress(OSError):
            (self._folder / "stalled.txt").write_text(f"{stall.line}\n{stacks}")


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


def _say(text: str) -> None:
    """Past sys.stderr, which a job may have redirected, and in one piece."""
    with suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
