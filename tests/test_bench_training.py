"""How a bench trains: workloads, rates of ranks of unlike speed, and every kind of subject."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcasync.bench import training
from hpcasync.bench.trainers import Ours
from hpcasync.bench.workloads import WORKLOADS
from hpcasync.sim import simulate
from hpcasync.strategies import Choice, parse_strategy
from hpcasync.world import World


def test_lockstep_in_closed_form() -> None:
    assert training.lockstep([400.0, 400.0, 400.0, 100.0], None) == 400
    assert training.lockstep([400.0] * 4, "exponential") == pytest.approx(1600 / (1 + 1 / 2 + 1 / 3 + 1 / 4))
    with pytest.raises(ValueError, match="pareto"):
        training.lockstep([1.0], "pareto:2")


@pytest.mark.parametrize(
    ("name", "parameters"), [("mlp 1 M", 1_011_010), ("cnn 1 M", 1_000_690), ("mlp 6.6 M", 6_615_178)]
)
def test_workloads_have_the_size_they_are_named_for(name: str, parameters: int) -> None:
    work = WORKLOADS[name]
    model = work.model()
    assert sum(p.numel() for p in model.parameters()) == parameters
    x, y = work.samples()
    assert model(x).shape == (work.batch, 10)
    assert y.shape == (work.batch,)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("lockstep", [False, True])
def test_all_ranks_train_until_all_have_measured(size: int, lockstep: bool) -> None:
    """On simulated ranks: in lockstep all make the same number of steps; otherwise none stops before all are done."""

    class Steps:
        def __init__(self, world: World) -> None:
            self.world, self.lockstep, self.made = world, lockstep, 0

        def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
            self.made += 1
            self.world.computed(0.0)
            if lockstep:
                self.world.barrier()

        def end(self) -> None:
            pass

    def rank(world: World) -> tuple[int, int, float]:
        trainer = Steps(world)
        steps, seconds = training.train(world, trainer, WORKLOADS["mlp 10 k"], 2.0, 10.0, 0)
        return trainer.made, steps, seconds

    told = simulate(rank, size, compute="slow:0:2" if size > 1 else "constant")
    assert not lockstep or len({made for made, _, _ in told}) == 1
    for place, (_, steps, seconds) in enumerate(told):
        slow = size > 1 and (lockstep or place == 0)
        assert seconds / steps == pytest.approx(2 if slow else 1)
        assert 10 <= seconds <= 10 + 2 * seconds / steps


@pytest.mark.parametrize("name", ["sync", "stale", "downpour"])
def test_rates_are_measured_with_ranks_of_unlike_speed(name: str) -> None:
    """On simulated ranks, where a step of rank 0 takes 2 s and one of the others 1 s."""

    def rank(world: World) -> list[dict[str, Any]]:
        return training.measure(world, 0, case="c", subject=name, workload="mlp 10 k", seconds=20.0, warmup_seconds=3.0)

    for told in simulate(rank, 3, compute="slow:0:2"):
        rates = told[0]["ranks"]
        steps = [1 / 2, 1, 1] if name == "downpour" else [1 / 2] * 3
        assert rates == pytest.approx([WORKLOADS["mlp 10 k"].batch * each for each in steps])
        assert told[0]["value"] == pytest.approx(sum(rates))


@pytest.mark.parametrize("choice", [None, parse_strategy(["downpour"]), parse_strategy(["sync"])])
def test_a_subject_trains(ranks: Any, choice: Choice | None) -> None:
    def main(world: World) -> None:
        trainer = Ours(WORKLOADS["mlp 10 k"], world, choice)
        before = trainer.strategy.replica.vector()
        trainer.step(*WORKLOADS["mlp 10 k"].samples())
        trainer.end()
        assert not torch.equal(trainer.strategy.replica.vector(), before)

    ranks(main)
