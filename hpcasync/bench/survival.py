"""A rank is killed in the middle of a run: do the others finish it?

A launch is a run of this file, as a job, under ``hpcasync run``; what it measures stands in the run's folder. On four
ranks an MLP learns scikit-learn's digits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hpcasync.data import Shard, load_images
from hpcasync.models import MLP
from hpcasync.replica import Replica
from hpcasync.run import Metric, Options, Run, main

MEASURE = "survival"
KILLED, UNDISTURBED = "killed", "undisturbed"  # cases
SURVIVED, ACCURACY, PAUSE = "survived", "accuracy", "pause"
_FIRST_DEATH, _DEATHS_APART = 15, 9  # steps; each repeat kills another rank in another step
_STEP_SECONDS = "0.003"  # as steps of larger models: in quicker ones four ranks leave two cores no time for rounds


def argv(strategy: str, ranks: int, case: str, repeat: int, results: Path) -> list[str]:
    """The command line of one run, whose folder is ``results``/run."""
    words = [sys.executable, "-m", "hpcasync.cli", "run", "-n", str(ranks), __file__]
    words += ["--strategy", *strategy.split(), "--epochs", "30", "--lr", "0.2", "--seed", str(repeat)]
    words += ["--step-seconds", _STEP_SECONDS]
    words += ["--results", str(results), "--name", "run"]
    if case == KILLED:
        words += ["--kill", f"{repeat % ranks}:{_FIRST_DEATH + _DEATHS_APART * (repeat % 10)}"]
    return words


def samples(folder: Path, case: str, subject: str) -> list[dict[str, Any]]:
    """What a run that is done has to tell: that it survived, its accuracy, and how long the survivors made no step."""
    record = json.loads((folder / "run.json").read_text())
    if len(record["failures"]) != (case == KILLED):
        raise ValueError(f"the run lost {len(record['failures'])} ranks")
    found = [(ACCURACY, "", record["summary"]["accuracy"]["value"])]
    if case == KILLED:
        found = [(SURVIVED, "", 1.0), *found, (PAUSE, "s", max(map(_pause, folder.glob("metrics.rank*.jsonl"))))]
    return [
        {"case": case, "subject": subject, "metric": metric, "unit": unit, "value": value}
        for metric, unit, value in found
    ]


def _pause(metrics: Path) -> float:
    """Seconds between a rank's last step before a recovery and its first one after; 0 for the dead.

    It holds the death's detection, the wait for further deaths, and the building of everything anew.
    """
    entries = [json.loads(line) for line in metrics.read_text().splitlines()]
    recovered = next((i for i, entry in enumerate(entries) if "recovered" in entry), None)
    if recovered is None:
        return 0.0
    before = [entry["seconds"] for entry in entries[:recovered] if "loss" in entry]
    after = [entry["seconds"] for entry in entries[recovered:] if "loss" in entry]
    return float(after[0] - before[-1]) if before and after else 0.0


def train(run: Run, job: Options) -> None:
    images = load_images(None)
    loader = Shard(images.x, images.y, run.world.rank, run.world.size, job.batch_size, job.seed)
    model = MLP(images.x[0].numel(), 128, images.classes)
    replica = Replica(model)
    optimizer = torch.optim.SGD(replica.parameters(), lr=job.lr, momentum=0.5, fused=True)

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {ACCURACY: (model(images.test_x).argmax(dim=1) == images.test_y).float().mean().item()}

    run.start(replica, optimizer, evaluate, metric=Metric(ACCURACY, better="higher"))
    for x, y in run.steps(loader):
        loss = F.cross_entropy(model(x), y)
        torch.autograd.backward(loss)
        run.step(loss)


if __name__ == "__main__":
    main(train, Options)
