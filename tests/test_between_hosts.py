"""MPIWorld on two hosts: the tests of every world again, and windows of ranks that are busy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import two_hosts

pytestmark = [
    pytest.mark.skipif(two_hosts.why_not() is not None, reason=str(two_hosts.why_not())),
    pytest.mark.timeout(500),
    pytest.mark.alone,
]

# Every verb, and strategies that use them in different ways; plain hogwild is for one node.
STRATEGIES = ["stale", "eager", "as_ready", "downpour", "server", "hogwild_nodes", "easgd", "adpsgd", "layup", "halos"]
FILES = ["tests/test_world.py", "tests/test_sharded.py", "tests/test_strategies.py"]
CONTRACT = [*FILES, "-k", " or ".join(["test_world", "test_sharded", *STRATEGIES])]

# The last rank computes, and calls no verb, until it sees in its own memory what rank 0 has sent. Rank 0 sends the
# second push when the first and a pull are complete: a rank that answered only between computations would never see it.
BUSY = """
import time
import torch
from hpcasync.mpi import MPIWorld

torch.set_num_threads(1)
world = MPIWorld()
window = world.window(1_000_000)
ones, pulled, taken = torch.ones(1_000_000), torch.empty(1_000_000), torch.empty(10)
target = world.size - 1
world.barrier()

def compute_until_seen(value):
    deadline = time.monotonic() + 100
    x = torch.ones(100, 100)
    while window.local[-1] != value:
        x = (x @ x).clamp(-1, 1)
        if time.monotonic() > deadline:
            return False
    return True

if world.rank == target:
    print([compute_until_seen(value) for value in (1, 2, 0)])
elif world.rank == 0:
    window.push(ones, target)
    window.flush()
    window.pull(pulled, target)
    window.flush()
    window.push(ones, target)
    window.flush()
    window.take(taken, target, offset=1_000_000 - 10)
    window.flush()
    print(pulled.unique().tolist(), taken.unique().tolist())
world.close()
"""


def run_on_two_hosts(ranks_per_host: int, argv: list[str]) -> subprocess.CompletedProcess[str]:
    with two_hosts.two_hosts() as hosts:
        line = hosts.command(two_hosts.MPI, ranks_per_host, [sys.executable, *argv])
        return subprocess.run(line, env=hosts.env, capture_output=True, text=True, timeout=480)


def test_the_contract_of_every_world_and_strategy_holds() -> None:
    options = ["-q", "-x", "--color=no", "-p", "no:cacheprovider", "--world", "mpi", "-m", "mpi"]
    run = run_on_two_hosts(2, ["-m", "pytest", *options, *CONTRACT])
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


@pytest.mark.parametrize("ranks_per_host", [1, 2])
def test_windows_of_a_rank_that_computes_answer_meanwhile(ranks_per_host: int) -> None:
    run = run_on_two_hosts(ranks_per_host, ["-c", BUSY])
    assert sorted(run.stdout.splitlines()) == ["[1.0] [2.0]", "[True, True, True]"], run.stderr
