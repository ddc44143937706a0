"""A NaN, an infinity or an absurd number in one rank's loss or gradient: what becomes of it in every strategy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hpcasync.errors import RunFailure
from hpcasync.sim import SimWorld, simulate
from hpcasync.strategies import STRATEGIES
from hpcasync.strategies.finite import LONGEST_ROW, FiniteCheck, is_finite
from hpcasync.world import World
from tests.small_job import attempt, codes
from tests.training import Vectors, build, gradient, linear
from tests.variants import VARIANTS

BAD = (math.nan, 1e30)  # infinities: see test_what_counts_as_finite
BAD_STEP = 2


def poisoned(model: nn.Module, rank: int, step: int, value: float, everywhere: bool = False) -> Tensor:
    """:func:`linear`, with ``value`` in one element of its gradient or in all."""
    flat = torch.cat([p.flatten().float() for p in model.parameters()])
    bad = gradient(rank, step, flat.numel())
    bad[None if everywhere else 3] = value
    return flat @ bad


def train(world: World, words: str, value: float, everywhere: bool = False, steps: int = 5):
    """The strategy after a run whose last rank has ``value`` in the gradient of a step; and what its ranks agree on."""
    model = Vectors((5, 3), (7,))
    strategy = build(words, world, model)
    for step in range(steps):
        bad = (world.rank, step) == (world.size - 1, BAD_STEP)
        loss = poisoned(model, world.rank, step, value, everywhere) if bad else linear(model, world.rank, step)
        loss.backward()
        world.computed(0.0)
        strategy.step(loss.item() if math.isfinite(value) else 0.0)
    strategy.drain()
    return strategy


@pytest.mark.parametrize("name", STRATEGIES)
def test_nothing_that_is_not_finite_reaches_anybodys_parameters(name: str) -> None:
    def main(world: World, value: float) -> None:
        strategy = train(world, name, value)
        assert all(is_finite(pair.params) for pair in strategy.replica.pairs)
        assert is_finite(strategy.result())
        assert strategy.finite_check.dropped == (world.rank == world.size - 1)

    for value in BAD:
        simulate(lambda world, value=value: main(world, value), 2, compute="exponential")


ADDING = [v for v in VARIANTS if v.applies != "other" and "server push=3" not in v.words]  # which adds up steps first


@pytest.mark.parametrize("variant", ADDING, ids=str)
def test_a_dropped_gradient_is_not_applied_and_all_others_are(ranks, variant):
    def main(world: World):
        strategy = train(world, variant.words, math.nan, everywhere=True)
        made = [[gradient(rank, step, 22).double() for step in range(5)] for rank in range(world.size)]
        made[-1][BAD_STEP].zero_()
        applied = sum(sum(steps) for steps in made) / (1 if variant.applies == "sum" else world.size)
        overwrites = variant.words.startswith("hogwild") and not isinstance(world, SimWorld)  # Hogwild!
        if not overwrites:
            assert torch.allclose(strategy.result().double(), -applied, rtol=1e-6, atol=1e-4)

    ranks(main, compute="exponential")


def test_gradients_that_wait_in_the_same_buffer_are_dropped_too() -> None:
    def main(world: World) -> None:
        strategy = train(world, "server push=3", math.nan, steps=6)
        made = [gradient(rank, step, 22) for rank in range(2) for step in range(6) if rank == 0 or step > 2]
        assert torch.allclose(strategy.result(), -sum(made))
        assert strategy.dropped == (3 if world.rank == 1 else 0)

    simulate(main, 2)


def test_eager_leaves_a_dropped_gradient_out_of_the_mean() -> None:
    def main(world: World) -> None:
        strategy = train(world, "eager bound=0", math.nan)
        made = torch.stack([torch.stack([gradient(rank, step, 22) for step in range(5)]) for rank in range(2)])
        others = made[1, [0, 1, 3, 4]]  # rank 1's third is dropped, so its fourth meets rank 0's third
        assert torch.allclose(strategy.result(), -((made[0, :4] + others).sum(dim=0) / 2 + made[0, 4]))

    simulate(main, 2)


@pytest.mark.parametrize("name", ["sync", "hogwild", "downpour push=2", "server push=2", "eager", "local_sgd period=2"])
def test_a_loss_that_is_not_finite_drops_its_gradient(name: str) -> None:
    def main(world: World) -> None:
        model = Vectors((4,))
        strategy = build(name, world, model)
        for loss in (0.0, math.nan, 0.0, -math.inf):
            linear(model, world.rank, 0).backward()
            strategy.step(loss)
        strategy.drain()
        assert strategy.finite_check.dropped == 2

    simulate(main, 2)


def test_running_statistics_are_taken_from_the_other_ranks() -> None:
    def main(world: World) -> None:
        model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
        strategy = build("downpour", world, model)
        batch = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        for step in range(4):
            spoiled = (world.rank, step) == (1, 2)
            loss = model(batch * math.nan if spoiled else batch).mean()
            loss.backward()
            strategy.step(loss.item())
        strategy.drain()
        assert is_finite(strategy.result())
        assert all(is_finite(flat.memory) for flat in strategy.replica.buffers)

    simulate(main, 2)


def test_infinities_that_a_mask_holds_are_left_alone() -> None:
    def main(world: World) -> None:
        model = nn.Linear(2, 2)
        model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        strategy = build("downpour", world, model)
        loss = (model(torch.ones(2)) * math.nan).sum()
        loss.backward()
        strategy.step(loss.item())
        strategy.drain()
        assert strategy.result()[-2:].tolist() == [0.0, -math.inf]

    simulate(main, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_counts_as_finite(dtype: torch.dtype) -> None:
    largest = min(torch.finfo(dtype).max, 1e15)
    assert is_finite(torch.full((1000,), largest, dtype=dtype))
    for value in (math.nan, math.inf, -math.inf):
        assert not is_finite(torch.tensor([1.0, value, 1.0], dtype=dtype))


def test_stop_raises_before_anything_leaves_and_allow_looks_at_nothing() -> None:
    bad = [torch.tensor([math.inf])]
    assert FiniteCheck("allow").admit(bad, math.nan)
    guard = FiniteCheck("stop")
    assert not guard.admit(bad, 0.0)
    with pytest.raises(RunFailure, match="not finite"):
        guard.end_step()


def test_a_row_of_bad_steps_is_divergence_and_a_good_one_ends_it() -> None:
    guard = FiniteCheck()
    for step in range(3 * LONGEST_ROW):
        guard.admit([torch.ones(1)], 0.0 if step % LONGEST_ROW == 0 else math.nan)
        guard.end_step()
    with pytest.raises(RunFailure, match=f"diverged: .* {LONGEST_ROW} steps in a row"):
        for _ in range(LONGEST_ROW):
            guard.admit([torch.ones(1)], math.nan)
            guard.end_step()


# In a run


def spoil(value: float):
    """In the fourth step rank 1 finds ``value`` among its parameters' gradients."""

    def in_step(run):
        if run.rank == 1 and run._totals.steps == 3:
            for pair in run.strategy.replica.pairs:
                pair.grads[0] = value

    return in_step


def outcome(folder: Path) -> tuple[str, str]:
    document = json.loads((folder / "run.json").read_text())
    failed = folder / "FAILED.json"
    return document["status"], json.loads(failed.read_text())["error"] if failed.exists() else ""


@pytest.mark.usefixtures("quick")
def test_a_run_says_what_it_drops_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = attempt(tmp_path / "run", "downpour", in_step=spoil(math.nan))
    assert codes(ended) == {0}
    summary = json.loads((tmp_path / "run" / "run.json").read_text())["summary"]
    assert summary["non_finite"]["value"] == 1
    printed = capsys.readouterr()
    assert "gradients left out, not finite: 1  done" in printed.out
    told = [line for line in printed.err.splitlines() if "warning" in line]
    assert told == ["hpcasync: warning: rank 1: a loss or gradient is not finite in step 4; it is left out"]
    assert outcome(tmp_path / "run") == ("done", "")


@pytest.mark.usefixtures("quick")
def test_stop_fails_the_run_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        attempt(tmp_path / "run", "downpour", in_step=spoil(math.inf), non_finite="stop")
    status, error = outcome(tmp_path / "run")
    assert status == "failed"
    assert "not finite" in error
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("words", ["sync", "hogwild", "sgp", "local_sgd period=1"])
def test_parameters_that_are_not_finite_fail_the_run(tmp_path: Path, words: str) -> None:
    with pytest.raises(SystemExit, match="1"):
        attempt(tmp_path / "run", words, in_step=spoil(math.nan), non_finite="allow")
    status, error = outcome(tmp_path / "run")
    assert status == "failed"
    assert "the parameters are not finite" in error
    assert not (tmp_path / "run" / "DONE").exists()


@pytest.mark.usefixtures("quick")
def test_no_checkpoint_holds_parameters_that_are_not_finite(tmp_path: Path) -> None:
    stop = dict.fromkeys(range(3), 5)
    with pytest.raises(SystemExit, match="1"):
        attempt(tmp_path / "run", "sync", in_step=spoil(math.nan), stop=stop, non_finite="allow", evaluate_every=99)
    assert not list((tmp_path / "run").glob("ckpt/[0-9]*"))
