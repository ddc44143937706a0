"""A rank that stands still for three seconds (SIGSTOP): what tests/test_stopped.py runs on real ranks.

    mpirun -n 3 python tests/stopped_job.py FILE 'STRATEGY [KEY=VALUE ...]' ...

One strategy after the other. Rank 0 writes into FILE, for each, how many steps it made before, while and after rank 1
stood still, and every rank's count.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpcasync.mpi import MPIWorld
from hpcasync.replica import Replica
from hpcasync.strategies import parse_strategy

STEPS, STEP_SECONDS = 200, 0.01
STOPS_AT, STOPPED_SECONDS = 20, 3.0


def stand_still() -> None:
    me = os.getpid()
    subprocess.Popen(["sh", "-c", f"sleep {STOPPED_SECONDS}; kill -CONT {me}"])
    os.kill(me, signal.SIGSTOP)


def train(world: MPIWorld, words: list[str]) -> dict[str, Any]:
    model = nn.Linear(50, 10)
    replica = Replica(model)
    strategy = parse_strategy(words).build(replica, world, torch.optim.SGD(replica.parameters(), lr=0.01))
    times = []
    stopped = torch.zeros(2, dtype=torch.float64)  # when, on the clock that the host's processes share, and until when
    world.barrier()
    for step in range(STEPS):
        if world.rank == 1 and step == STOPS_AT:
            stopped[0] = time.monotonic()
            stand_still()
            stopped[1] = time.monotonic()
        time.sleep(STEP_SECONDS)
        model(torch.ones(1, 50)).sum().backward()
        strategy.step()
        times.append(time.monotonic())
    strategy.drain()
    world.allreduce(stopped)
    counts = torch.zeros(world.size, dtype=torch.int64)
    counts[world.rank] = strategy.staleness.count
    world.allreduce(counts)
    began, ended = stopped.tolist()
    return {
        "before": sum(t < began for t in times),
        "during": sum(began <= t <= ended for t in times),
        "after": sum(t > ended for t in times),
        "counts": counts.tolist(),
    }


def main() -> None:
    file, strategies = Path(sys.argv[1]), sys.argv[2:]
    world = MPIWorld()
    found = {words: train(world, words.split()) for words in strategies}
    if world.rank == 0:
        file.write_text(json.dumps(found))
    world.close()


if __name__ == "__main__":
    main()
