"""A run of twelve steps on three simulated ranks, for tests of what becomes of runs: stopped, killed, gone on with."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpcasync.replica import Replica
from hpcasync.run import Options, Run
from hpcasync.run.main import live
from hpcasync.run.provenance import Origin
from hpcasync.run.stop import Signals
from hpcasync.run.worlds import KINDS
from hpcasync.sim import simulate
from hpcasync.world import World

RANKS, EPOCHS, BATCHES = 3, 4, 3
STEPS = EPOCHS * BATCHES
SAME_BITS = ("sync", "stale bound=0", "as_ready", "in_backward")  # what is interrupted ends as if it were not


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


class Killed(BaseException):
    """What no rank can catch: nothing is written any more."""


class SignalInStep(Signals):
    """As if the rank had got SIGUSR1 when it had made ``step`` steps; never, with None."""

    def __init__(self, step: int | None) -> None:
        self.run: Run | None = None
        self._step = step

    @property
    def received(self) -> int:  # type: ignore[override]
        stopped = self._step is not None and self.run is not None and self.run._totals.steps >= self._step
        return signal.SIGUSR1 if stopped else 0


def attempt(
    folder: Path,
    words: str,
    *,
    stop: dict[int, int] | None = None,
    fail: dict[int, Any] | None = None,
    in_step: Callable[[Run], None] = lambda run: None,
    build: Callable[[], nn.Module] = model,
    batches: int = BATCHES,
    job: Options | None = None,
    **more: Any,
) -> list[tuple[int, Tensor] | None]:
    """Begin the run in ``folder`` or go on with it: each rank's exit code and parameters, None for the dead.

    Args:
        words: the strategy.
        stop: {rank: the step after which it gets a signal}.
        fail: {rank: the call into its World at which it dies}.
        in_step: called by every rank in every step.
        build: makes the model, (n, 2) -> (n, 1).
        batches: of an epoch.
        job: the options that are not given here.
        more: further options of the job.
    """
    options = replace(
        job or Options(),
        **{"strategy": tuple(words.split()), "ranks": RANKS, "epochs": EPOCHS} | more,
        world="sim",
        results=folder.parent,
        name=folder.name,
        resume=True,
    )

    def train(run: Run, job: Options) -> None:
        torch.manual_seed(0)
        model = build()
        replica = Replica(model)
        optimizer = torch.optim.SGD(replica.parameters(), lr=0.05, momentum=0.5)
        x = torch.linspace(-1, 1, 8).view(4, 2) + run.rank
        run.start(replica, optimizer, lambda model: {"loss": float(model(x).mean())})
        for batch in run.steps([x, x + 1, x - 1][:batches]):
            in_step(run)
            loss = model(batch).pow(2).mean()
            loss.backward()
            run.step(loss)

    def main(world: World) -> tuple[int, Tensor]:
        signals = SignalInStep((stop or {}).get(world.rank))
        signals.run = run = Run(world, options, Origin(Path("job.py"), "sim", "SimWorld", []), signals)
        code = live(train, options, run, KINDS["sim"])
        replica = run.strategy.replica if run.folder else None
        return code, torch.cat([pair.params.detach().clone() for pair in replica.pairs]) if replica else torch.zeros(0)

    return simulate(main, options.ranks or RANKS, compute="exponential", alpha=0.01, fail=fail)


def codes(ended: list[tuple[int, Tensor] | None]) -> set[int]:
    """The exit codes of the living."""
    return {end[0] for end in ended if end is not None}


def parameters(ended: list[tuple[int, Tensor] | None]) -> list[Tensor]:
    """The parameters of the living, in the order of their ranks."""
    return [end[1] for end in ended if end is not None]


def lines(folder: Path, rank: int) -> list[dict[str, Any]]:
    """What ``rank`` has written about its steps."""
    return [json.loads(line) for line in (folder / f"metrics.rank{rank}.jsonl").read_text().splitlines()]


def check_steps(folder: Path, rank: int) -> None:
    """``rank`` has made every step once, one after the other."""
    written = [line for line in lines(folder, rank) if "loss" in line]
    assert [line["step"] for line in written] == list(range(1, STEPS + 1))
    assert [line["seconds"] for line in written] == sorted(line["seconds"] for line in written)
