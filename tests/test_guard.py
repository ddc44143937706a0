"""The guard of a rank: what it makes of the program's end, and that signals and deaths pass through it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpcasync.launch import environment
from hpcasync.launch.boxes import ERROR, LOST

GUARD = [sys.executable, "-ES", str(Path(environment.__file__).with_name("guard.py"))]
SAYS = "import os, sys, signal; say = lambda word: os.write(int(os.environ['HPCASYNC_GUARD']), word); "
BEFORE_MPI = f"{ERROR}a rank has ended before MPI had started"

pytestmark = pytest.mark.timeout(100)


def guarded(code: str) -> tuple[int, str]:
    """Exit code and stderr of a program of rank 1."""
    done = subprocess.run(
        [*GUARD, sys.executable, "-c", SAYS + code],
        capture_output=True,
        text=True,
        env=os.environ | {"PMIX_RANK": "1"},
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("code", "end", "told"),
    [
        ("say(b'u')", 0, ""),
        ("", 0, ""),
        ("say(b'u'); say(b'l'); os._exit(85)", 85, ""),
        ("say(b'u'); os._exit(3)", -signal.SIGKILL, f"{LOST}rank 1: exit code 3\n"),
        ("say(b'u'); os.kill(os.getpid(), 9)", -signal.SIGKILL, f"{LOST}rank 1: Killed\n"),
        ("os._exit(1)", -signal.SIGKILL, f"{BEFORE_MPI} (exit code 1)\n"),
        ("os.kill(os.getpid(), 11)", -signal.SIGKILL, f"{BEFORE_MPI} (Segmentation fault)\n"),
    ],
)
def test_an_end_that_the_others_must_hear_of_is_a_death(code: str, end: int, told: str) -> None:
    assert guarded(code) == (end, told)


def test_a_program_that_is_not_there_is_named() -> None:
    done = subprocess.run([*GUARD, "/no/such"], capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"{ERROR}/no/such: No such file or directory\n")


def started(code: str, block: str = "") -> subprocess.Popen[str]:
    """A program that says a line when it listens to signals, and runs then."""
    code = f"{SAYS}{block}print(flush=True); {code}"
    return subprocess.Popen([*GUARD, sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_signals_reach_the_program_once() -> None:
    wait = "print(int(signal.sigwait([10])), int(signal.sigwait([12])), len(signal.sigpending()), flush=True)"
    process = started(wait, "signal.pthread_sigmask(signal.SIG_BLOCK, [10, 12]); ")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGUSR2)
    assert process.stdout.read() == "10 12 0\n"
    assert process.wait() == 0
    process.stdout.close()


def test_the_program_dies_with_its_guard() -> None:
    process = started("signal.pause()")
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    assert process.stdout.read() == ""  # its end is closed: the program is gone
    process.wait()
    process.stdout.close()
