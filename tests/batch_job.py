"""A job of slow steps for batch scripts: what tests/test_slurm.py submits.

The parameters after the last step go to parameters.json in the run's folder.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass

import torch
from torch import nn

from hpcasync.replica import Replica
from hpcasync.run import Metric, Options, Run, main


@dataclass
class Slow(Options):
    """Steps that leave time for a signal."""

    first_attempt_seconds: float = 0.0  # what a step takes more until Slurm has started the job again


def train(run: Run, job: Slow) -> None:
    restarted = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
    model = nn.Linear(3, 1)
    replica = Replica(model)
    optimizer = torch.optim.SGD(replica.parameters(), lr=job.lr, momentum=0.9)
    generator = torch.Generator().manual_seed(run.rank_seed(0))
    batches = [torch.randn(job.batch_size, 3, generator=generator) for _ in range(8)]
    run.start(
        replica,
        optimizer,
        lambda model: {"loss": float(model(torch.ones(1, 3)).pow(2))},
        metric=Metric("loss", better="lower"),
    )
    for x in run.steps(batches):
        time.sleep(0 if restarted else job.first_attempt_seconds)
        loss = (model(x) - x.sum(dim=1, keepdim=True)).pow(2).mean()
        loss.backward()
        run.step(loss)
    if run.rank == 0:
        assert run.folder is not None
        parameters = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        (run.folder / "parameters.json").write_text(json.dumps([float(value).hex() for value in parameters]))


if __name__ == "__main__":
    main(train, Slow)
