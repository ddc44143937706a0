"""A job of a few milliseconds that can fail on command: what tests/test_run.py runs."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn
from tyro.conf import arg

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.run import Metric, Options, Run, main

BATCHES = 8


@dataclass
class Tiny(Options):
    fail: Annotated[
        Literal[
            "none",
            "raise",
            "mistake",
            "exit",
            "interrupt",
            "signal",
            "leave",
            "hang",
            "remove",
            "empty",
            "last",
            "no-step",
            "own-step",
            "no-replica",
            "no-start",
        ],
        arg(metavar="HOW"),
    ] = "none"
    """How a rank fails."""
    failing_rank: int = -1
    """Which; -1 means all."""
    when: Literal["early", "late"] = "late"
    """Before run.start(), or in the third step."""
    samples: int | None = None
    """What it says to each step; by default nothing."""
    metric: Literal["loss", "auc", "none", "absent"] = "loss"
    """What it declares: its loss, an area that grows as the loss falls, nothing, or what evaluate() does not return."""

    def metrics(self) -> Sequence[Metric]:
        known = {"loss": Metric("loss", better="lower"), "auc": Metric("auc", unit="%", better="higher")}
        return [] if self.metric == "none" else [known.get(self.metric, Metric(self.metric, better="higher"))]


def fail_perhaps(run: Run, job: Tiny, when: str) -> None:
    if job.when != when or job.failing_rank not in (-1, run.rank):
        return
    if job.fail == "raise":
        raise RuntimeError(f"rank {run.rank} fails as it was told")
    if job.fail == "mistake":
        raise UsageError("a mistake of the user")
    if job.fail == "exit":
        sys.exit("leaves")
    if job.fail == "interrupt":
        raise KeyboardInterrupt
    if job.fail == "leave":
        os._exit(3)
    if job.fail == "remove":
        shutil.rmtree(run.folder or "")
    if job.fail == "hang":
        print("hangs", flush=True)
        while True:
            pass
    if job.fail == "signal":
        os.kill(os.getpid(), signal.SIGTERM)


def train(run: Run, job: Tiny) -> None:
    fail_perhaps(run, job, "early")
    model = nn.Linear(3, 1)
    replica = Replica(model)
    optimizer = torch.optim.SGD(replica.parameters(), lr=job.lr)
    generator = torch.Generator().manual_seed(run.rank_seed(0))
    batches = [torch.randn(job.batch_size, 3, generator=generator) for _ in range(BATCHES)]
    if job.fail == "empty" and run.rank == job.failing_rank:
        batches.clear()
    if job.fail == "last" and run.rank == job.failing_rank:
        atexit.register(os.kill, os.getpid(), signal.SIGKILL)
    if job.fail == "no-start":
        return

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        loss = float(model(torch.ones(1, 3)).pow(2))
        return {"loss": loss, "auc": 100 / (1 + loss)}

    run.start(model if job.fail == "no-replica" else replica, optimizer, evaluate, metric=job.metrics())  # type: ignore[arg-type]
    for x in run.steps(batches):
        if run.strategy.staleness.count >= 2:
            fail_perhaps(run, job, "late")
        loss = model(x).pow(2).mean()
        loss.backward()
        if job.fail == "own-step":
            optimizer.step()
        if job.fail != "no-step":
            run.step(loss, samples=job.samples)


if __name__ == "__main__":
    main(train, Tiny)
