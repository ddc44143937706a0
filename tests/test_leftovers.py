"""Which of the files in /dev/shm are swept: nobody's, and no others. And what is tied to a process ends with it."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcasync.launch.execute import TIED
from hpcasync.launch.leftovers import SHARED, shared_files, sweep

HOST = socket.gethostname().partition(".")[0]
OLD = 100.0  # seconds


def make(path: Path, age: float = OLD) -> Path:
    path.write_bytes(bytes(mmap.PAGESIZE))
    os.utime(path, (time.time() - age,) * 2)
    return path


NAMES = [f"sm_segment.{HOST}.0.37b80001.1", f"osc_sm.{HOST}.37b80001.3.0", "mpich_shm_bfc6c75a_0"]
FOREIGN = ["sm_segment.elsewhere.0.37b80001.1", "torch_4711_0", "mpich_shm_bfc6c75a_0.txt", "sem.mine"]


def test_what_nobody_uses_is_deleted_by_name(tmp_path: Path) -> None:
    for name in NAMES + FOREIGN:
        make(tmp_path / name)
    (tmp_path / f"sm_segment.{HOST}.0.1.0").mkdir()
    (tmp_path / f"sm_segment.{HOST}.0.1.1").symlink_to(tmp_path / "sem.mine")
    assert shared_files(tmp_path).keys() == {tmp_path / name for name in NAMES}
    sweep(folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *FOREIGN,
        f"sm_segment.{HOST}.0.1.0",
        f"sm_segment.{HOST}.0.1.1",
    }


def test_a_folder_that_is_not_there_is_swept() -> None:
    sweep(folder=Path("/nowhere"))


def test_young_and_spared_files_stay(tmp_path: Path) -> None:
    young, spared = make(tmp_path / NAMES[0], age=0), make(tmp_path / NAMES[1])
    sweep(folder=tmp_path, spared={spared})
    assert young.exists()
    assert spared.exists()
    sweep(folder=tmp_path, spared={spared}, older_seconds=0)
    assert not young.exists()


@pytest.mark.parametrize("use", ["mapped", "open"])
def test_what_another_process_uses_stays_until_it_ends(tmp_path: Path, use: str) -> None:
    """In /dev/shm, where the kernel's numbers of device and file are those that ranks have."""
    path = make(SHARED / f"mpich_shm_{os.getpid():x}_{time.monotonic_ns()}")
    code = f"""import mmap, sys
file = open({str(path)!r}, "r+b")
if {use == "mapped"}:
    memory = mmap.mmap(file.fileno(), 0)
    file.close()
print("ready", flush=True)
sys.stdin.read()"""
    others = shared_files().keys() - {path}
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == b"ready\n"
        sweep(spared=others)
        assert path.exists()
    sweep(spared=others)
    assert not path.exists()


def test_what_is_tied_to_a_process_ends_when_that_is_killed() -> None:
    shell = "trap 'echo asked; exit' TERM; echo up; while :; do sleep 0.05; done"
    code = f"""import os, subprocess
subprocess.run([*{TIED!r}, "TERM", str(os.getpid()), "sh", "-c", {shell!r}])"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        parent.send_signal(signal.SIGKILL)
        assert parent.stdout.read() == "asked\n"  # to the end: nobody holds the pipe any more


def test_nothing_is_started_for_a_parent_that_has_died() -> None:
    done = subprocess.run([*TIED, "TERM", "1", "echo", "started"], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
