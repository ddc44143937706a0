"""`hpcasync run` on a terminal, real ranks under Open MPI and MPICH: what it shows, how it ends, what it leaves."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcasync.launch.leftovers import sweep

ROOT = Path(__file__).parent.parent
JOB = ROOT / "tests" / "tiny_job.py"
PYTHONS = [ROOT / ".venv" / "bin" / "python", ROOT / ".venv-mpich" / "bin" / "python"]
SLOW = ("--seconds", "1000", "--step-seconds", "0.3")  # for a test that ends the run itself

on_both = pytest.mark.parametrize("python", PYTHONS, ids=["Open MPI", "MPICH"])
pytestmark = pytest.mark.timeout(400)


class Terminal:
    """A command on a pseudo-terminal of its own, by script(1).

    Attributes:
        seen: what the terminal has shown so far.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process, self.seen = process, ""

    def wait_for(self, condition: Callable[[str], object]) -> None:
        """Read on until ``condition`` holds of what was seen."""
        assert self.process.stdout is not None
        while not condition(self.seen):
            chunk = os.read(self.process.stdout.fileno(), 4096)
            assert chunk, self.seen
            self.seen += chunk.decode(errors="replace")

    def end(self) -> int:
        """Read to the end; the exit code."""
        assert self.process.stdout is not None
        self.seen += self.process.stdout.read().decode(errors="replace")
        return self.process.wait()

    def type(self, keys: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(keys)
        self.process.stdin.flush()

    @property
    def lines(self) -> list[str]:
        """What stays on the screen, the line that moves being erased."""
        kept = [line.rstrip("\r").rpartition("\x1b[K")[2] for line in self.seen.split("\n")]
        return [line for line in kept if line]

    @property
    def steps(self) -> set[str]:
        """The numbers of steps that the line that moves has shown."""
        return set(re.findall(r"\x1b\[K(?:[-/|\\] )?sync .*?step (\d+)", self.seen))


def command(python: Path, results: Path, *words: str) -> list[str]:
    """`hpcasync run` of the tiny job on two ranks."""
    argv = [str(python), "-m", "hpcasync.cli", "run", "-n", "2", str(JOB)]
    return [*argv, "--results", str(results), "--name", "run", *words]


@contextmanager
def terminal(argv: Sequence[str]) -> Iterator[Terminal]:
    with subprocess.Popen(
        ["script", "-qefc", shlex.join(argv), "/dev/null"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    ) as process:
        try:
            yield Terminal(process)
        finally:
            process.kill()


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}


def ranks(results: Path) -> dict[int, set[str]]:
    """{process id: its files in /dev/shm} of all processes of the run in ``results``."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(results).encode() in (process / "cmdline").read_bytes():
                found[int(process.name)] = set(re.findall(r"/dev/shm/\S+", (process / "maps").read_text()))
        except OSError:
            continue
    return found


def assert_nothing_is_left(results: Path, files: set[str]) -> None:
    limit = time.monotonic() + 100
    while ranks(results):
        assert time.monotonic() < limit, ranks(results)
        time.sleep(0.1)
    assert not [file for file in files if Path(file).exists()]


@on_both
def test_a_run_on_a_terminal_moves_and_ctrl_c_ends_it(python: Path, tmp_path: Path) -> None:
    with terminal(command(python, tmp_path, *SLOW)) as screen:
        screen.wait_for(lambda _: len(screen.steps) > 1)
        files = set().union(*ranks(tmp_path).values())
        assert files
        screen.type(b"\x03")
        assert screen.end() == 128 + signal.SIGINT
    assert "hpcasync: stopped by SIGINT; --resume --name run goes on" in screen.lines
    assert any(line.endswith(f"stopped: {tmp_path}/run") for line in screen.lines)
    assert_nothing_is_left(tmp_path, files)
    assert list((tmp_path / "run" / "ckpt").iterdir())


@on_both
def test_a_run_on_a_terminal_ends_well(python: Path, tmp_path: Path) -> None:
    with terminal(command(python, tmp_path, "--epochs", "2")) as screen:
        assert screen.end() == 0
    assert [line.split()[:3] for line in screen.lines[:2]] == [["sync", "epoch", "1"], ["sync", "epoch", "2"]]
    assert screen.lines[-1].endswith(f"done: {tmp_path}/run")
    assert "starting 2 ranks of tiny_job.py" in screen.seen
    assert "\x1e" not in screen.seen
    assert not ranks(tmp_path)


@on_both
def test_an_exception_is_whole_on_a_terminal(python: Path, tmp_path: Path) -> None:
    with terminal(command(python, tmp_path, "--fail", "raise", "--failing-rank", "1")) as screen:
        assert screen.end() == 1
    assert "hpcasync: rank 1 failed" in screen.lines, screen.seen
    first = screen.lines.index("hpcasync: rank 1 failed")
    assert screen.lines[first + 1] == "Traceback (most recent call last):"
    assert screen.lines[-1] == "RuntimeError: rank 1 fails as it was told"
    assert_nothing_is_left(tmp_path, set())


def test_a_mistake_is_one_line_on_a_terminal(tmp_path: Path) -> None:
    with terminal(command(PYTHONS[0], tmp_path, "--lr", "x")) as screen:
        assert screen.end() == 2
    assert len(screen.lines) == 1
    assert screen.lines[0].startswith("hpcasync: error: ")


@pytest.mark.parametrize("start", ["hpcasync run", "python"])
def test_a_terminal_that_is_closed_ends_a_run_with_a_checkpoint(start: str, tmp_path: Path) -> None:
    launched = command(PYTHONS[0], tmp_path, *SLOW)
    alone = [launched[0], *launched[launched.index(str(JOB)) :]]
    with terminal(launched if start == "hpcasync run" else alone) as screen:
        screen.wait_for(lambda _: len(screen.steps) > 1)
        files = set().union(*ranks(tmp_path).values()) if start == "hpcasync run" else set()
        screen.process.kill()
    assert_nothing_is_left(tmp_path, files)  # what a rank without a launcher leaves is swept by the next run
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert list((tmp_path / "run" / "ckpt").iterdir())


@on_both
def test_nothing_outlives_a_launcher_that_was_killed(python: Path, tmp_path: Path) -> None:
    argv = command(python, tmp_path, *SLOW)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment()) as launcher:
        assert launcher.stdout is not None
        while "epoch" not in launcher.stdout.readline():
            assert launcher.poll() is None
        files = set().union(*ranks(tmp_path).values())
        assert files
        launcher.kill()
        assert_nothing_is_left(tmp_path, set())  # the next start sweeps what lies in /dev/shm
    for file in map(Path, files):
        if file.exists():
            os.utime(file, (0, 0))
    limit = time.monotonic() + 60
    while [file for file in files if Path(file).exists()]:
        assert time.monotonic() < limit, files
        sweep()
        time.sleep(0.1)
