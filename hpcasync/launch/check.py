"""Have a job read its options in one process, before any rank is started for it or anything is queued.

The job's own main() reads them, in a process of its own that ends there: whatever a job does before main(), and
whatever options it has, is as it will be in the ranks. Nothing of it runs in the process that launches.
"""

from __future__ import annotations

import ast
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hpcasync.launch import environment
from hpcasync.launch.boxes import ERROR
from hpcasync.launch.execute import exit_code
from hpcasync.launch.words import command_line, value_of

# Options of `hpcasync run` that are not handed on to the job, and whether they take a value.
LAUNCHER_OPTIONS = {"-n": True, "--launcher": True, "--binding": True, "--dry-run": False}
REFUSED = 2  # the exit code after a mistake of the user


@dataclass(frozen=True)
class Checked:
    """The exit code of a job that was to read its options alone, and what it has said on stderr."""

    code: int = 0
    told: str = ""


def check_options(program: Sequence[str]) -> Checked:
    """``program``: Python, the job and its options. A job that does not import hpcasync.run.main() is not asked: it
    would not end there."""
    if not _has_main(Path(program[1])):
        return Checked()
    with (
        subprocess.Popen(
            program,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=os.environ | {environment.CHECK: "1"},
        ) as process,
        _stopping(process) as received,
    ):
        _, told = process.communicate()
    if received:
        return Checked(exit_code(received[0]))
    code = process.returncode
    return Checked(code if code >= 0 else 128 - code, _misplaced(program) * (code == REFUSED) or told)


def _misplaced(program: Sequence[str]) -> str:
    """What to say where the job has refused its options, and one of them is `hpcasync run`'s."""
    option = next((name for word in program[2:] if (name := word.partition("=")[0]) in LAUNCHER_OPTIONS), None)
    if option is None:
        return ""
    value = value_of(program, option) if LAUNCHER_OPTIONS[option] else None
    line = command_line([option, *([] if value is None else [value]), program[1]])
    return f"{ERROR}{option} stands before the job's name: hpcasync run {line} ...\n"


def _has_main(job: Path) -> bool:
    try:
        tree = ast.parse(job.read_bytes())
    except (SyntaxError, ValueError):
        return True  # Python will say what is wrong with it
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module in ("hpcasync.run", "hpcasync.run.main")
        and any(name.name == "main" for name in node.names)
        for node in ast.walk(tree)
    )


@contextmanager
def _stopping(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """A signal that would end this process ends ``process``; yields the list of those received."""
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        process.kill()

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
