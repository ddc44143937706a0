"""The test bench itself: two hosts are two to MPI, and nothing is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import two_hosts
from tests.two_hosts import MPI, TwoHosts

pytestmark = [
    pytest.mark.skipif(two_hosts.why_not() is not None, reason=str(two_hosts.why_not())),
    pytest.mark.timeout(120),
]

FOUR_MEGABYTES_ACROSS = """
import numpy as np
from mpi4py import MPI
world = MPI.COMM_WORLD
sent_bytes = lambda: int(next(l for l in open("/proc/self/net/dev") if "eth0" in l).split()[9])
before = sent_bytes()
vector = np.full(1_000_000, world.rank, np.float32)
if world.rank == 0:
    world.Send(vector, world.size - 1)
elif world.rank == world.size - 1:
    world.Recv(vector, 0)
world.Barrier()
node = world.Split_type(MPI.COMM_TYPE_SHARED)
seen = world.gather((MPI.Get_processor_name(), node.size, float(vector[0])))
if world.rank == 0:
    print(seen, sent_bytes() - before >= vector.nbytes)
"""


def living() -> list[int]:
    """Process ids, as this process sees them, whose command line names the mark in our environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if MARK in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:
            continue  # ended meanwhile
    return [pid for pid in found if pid != os.getpid()]


MARK = f"TWO_HOSTS_TEST={os.getpid()}".encode()
MARKED = dict([MARK.decode().split("=")])


def wait_until_dead() -> None:
    deadline = time.monotonic() + 30
    while living():
        assert time.monotonic() < deadline, f"still alive: {living()}"
        time.sleep(0.02)


def start_sleepers(hosts: TwoHosts) -> subprocess.Popen[str]:
    line = hosts.command(MPI, 1, [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"])
    job = subprocess.Popen(line, env={**hosts.env, **MARKED}, stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert [job.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
    return job


def test_mpi_sees_two_machines_and_the_bytes_cross_the_cable() -> None:
    with two_hosts.two_hosts() as hosts:
        line = hosts.command(MPI, 2, [sys.executable, "-c", FOUR_MEGABYTES_ACROSS])
        run = subprocess.run(line, env=hosts.env, capture_output=True, text=True, check=True)
    ranks = [("h1", 2, 0.0), ("h1", 2, 1.0), ("h2", 2, 2.0), ("h2", 2, 0.0)]
    assert run.stdout.strip() == f"{ranks} True"


def test_two_pairs_of_hosts_at_once_do_not_meet() -> None:
    with two_hosts.two_hosts() as one, two_hosts.two_hosts() as other:
        jobs = [start_sleepers(hosts) for hosts in (one, other)]
        assert len(living()) >= 2 * 2
    for job in jobs:
        job.communicate(timeout=30)
    wait_until_dead()


def test_the_rate_limits_the_cable() -> None:
    with two_hosts.two_hosts(megabits_per_second=100) as hosts:
        shown = subprocess.run(
            hosts.inside("h1", ["tc", "qdisc", "show", "dev", "eth0"]), capture_output=True, text=True
        )
    assert "rate 100Mbit" in shown.stdout


def test_the_exit_status_and_the_directory_come_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with two_hosts.two_hosts() as hosts:
        run = subprocess.run(hosts.inside("h2", ["sh", "-c", "pwd; exit 7"]), capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (7, f"{tmp_path}\n")


def test_processes_end_with_the_context_even_when_it_raises() -> None:
    with pytest.raises(KeyError), two_hosts.two_hosts() as hosts:
        job = start_sleepers(hosts)
        raise KeyError
    job.communicate(timeout=30)
    wait_until_dead()


def test_a_killed_launcher_line_takes_its_ranks_along() -> None:
    with two_hosts.two_hosts() as hosts:
        job = start_sleepers(hosts)
        job.kill()
        job.communicate(timeout=30)
        wait_until_dead()


def test_everything_ends_when_the_process_that_made_the_hosts_is_killed() -> None:
    script = [sys.executable, two_hosts.__file__, "--mpi", MPI, "--ranks", "1", "--"]
    sleep = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
    maker = subprocess.Popen([*script, *sleep], env={**os.environ, **MARKED}, stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    assert maker.stdout.readline() == "up\n"
    maker.send_signal(signal.SIGKILL)
    maker.communicate(timeout=30)
    wait_until_dead()


def test_another_user_than_root_is_told_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs root" in str(two_hosts.why_not.__wrapped__())


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "need ip, tc" in str(two_hosts.why_not.__wrapped__())
    assert "iproute2" in str(two_hosts.why_not.__wrapped__())
