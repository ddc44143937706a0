"""A job one rank of which holds up the others in its third step: what tests/test_watchdog.py runs."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from hpcasync.replica import Replica
from hpcasync.run import Options, Run, main

STUCK_RANK = 1


@dataclass
class Stalled(Options):
    how: Literal["barrier", "loop", "sleep", "stop", "evaluate"] = "loop"
    """A barrier that no other rank calls, an endless loop, a long sleep, a SIGSTOP; or rank 0's first evaluation."""
    sleep_seconds: float = 1e6
    """How long the sleep takes."""


def hold_up(run: Run, job: Stalled) -> None:
    if job.how == "barrier":
        run.world.barrier()
    elif job.how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif job.how == "sleep":
        time.sleep(job.sleep_seconds)
    elif job.how == "loop":
        while True:
            sum(range(1000))


def train(run: Run, job: Stalled) -> None:
    model = nn.Linear(3, 1)
    replica = Replica(model)
    optimizer = torch.optim.SGD(replica.parameters(), lr=job.lr)

    def evaluate(model: nn.Module) -> dict[str, float]:
        if job.how == "evaluate":
            time.sleep(job.sleep_seconds)
        return {"loss": float(model(torch.ones(1, 3)).pow(2))}

    run.start(replica, optimizer, evaluate)
    for number, x in enumerate(run.steps([torch.ones(4, 3)] * 8)):
        if number == 2 and run.rank == STUCK_RANK:
            hold_up(run, job)
        loss = model(x).pow(2).mean()
        loss.backward()
        run.step(loss)


if __name__ == "__main__":
    main(train, Stalled)
