"""A run that a signal stops and --resume goes on with: as if nothing had happened, as far as the algorithm allows."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcasync.errors import UsageError
from hpcasync.launch.execute import REQUEUE
from hpcasync.replica import Replica
from hpcasync.run import Options, Run, provenance
from hpcasync.run.main import live
from hpcasync.run.provenance import Origin
from hpcasync.run.stop import Signals
from hpcasync.run.worlds import KINDS
from hpcasync.sim import simulate
from hpcasync.world import World
from tests.variants import VARIANTS

RANKS, EPOCHS, BATCHES = 3, 4, 3
SAME_BITS = ("sync", "stale bound=0", "as_ready", "in_backward")


class SignalInStep(Signals):
    """As if the rank had got SIGUSR1 when it had made ``step`` steps; never, with None."""

    def __init__(self, run: list[Run], step: int | None) -> None:
        self._run, self._step = run, step

    @property
    def received(self) -> int:  # type: ignore[override]
        stopped = self._step is not None and self._run and self._run[0]._totals.steps >= self._step
        return signal.SIGUSR1 if stopped else 0


def train(run: Run, job: Options) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    replica = Replica(model)
    optimizer = torch.optim.SGD(replica.parameters(), lr=0.05, momentum=0.5)
    x = torch.linspace(-1, 1, 8).view(4, 2) + run.rank
    run.start(replica, optimizer, lambda model: {"loss": float(model(x).mean())})
    for batch in run.steps([x, x + 1, x - 1]):
        loss = model(batch).pow(2).mean()
        loss.backward()
        run.step(loss)


def attempt(folder: Path, words: str, stop: dict[int, int] | None = None, **more: Any) -> list[tuple[int, Tensor]]:
    """Each rank's exit code and parameters; ``stop``: {rank: the step after which it gets a signal}."""
    options = Options(
        **{"strategy": tuple(words.split()), "ranks": RANKS, "epochs": EPOCHS} | more,
        world="sim",
        results=folder.parent,
        name=folder.name,
        resume=True,
    )

    def main(world: World) -> tuple[int, Tensor]:
        runs: list[Run] = []
        run = Run(
            world,
            options,
            Origin(Path("job.py"), "sim", "SimWorld", []),
            SignalInStep(runs, (stop or {}).get(world.rank)),
        )
        runs.append(run)
        code = live(train, options, run, KINDS["sim"])
        if run.folder is None:
            return code, torch.zeros(0)
        return code, torch.cat([pair.params.detach().clone() for pair in run.strategy.replica.pairs])

    return simulate(main, options.ranks or RANKS, compute="exponential", alpha=0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "git", lambda folder: None)  # two processes per run
    monkeypatch.setattr(provenance, "packages", dict)
    monkeypatch.setattr(torch, "manual_seed", torch.default_generator.manual_seed)  # notes no stack for other devices
    monkeypatch.setattr(os, "fsync", lambda file: None)


def lines(folder: Path, rank: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"metrics.rank{rank}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stopped", [{1: 5}, {0: 0}, {0: 4, 1: 4, 2: 4}, {2: 11}], ids=str)
@pytest.mark.parametrize("words", [str(variant) for variant in VARIANTS])
def test_a_run_goes_on_where_it_was_stopped(words: str, stopped: dict[int, int], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert {code for code, _ in attempt(folder, words, stopped)} == {REQUEUE}
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert not (folder / "DONE").exists()
    ended = attempt(folder, words)
    assert {code for code, _ in ended} == {0}
    assert (folder / "DONE").exists()
    document = json.loads((folder / "run.json").read_text())
    assert [each["status"] for each in document["attempts"]] == ["interrupted", "done"]
    assert document["summary"]["steps"]["value"] == RANKS * EPOCHS * BATCHES
    for rank in range(RANKS):
        written = [line for line in lines(folder, rank) if "loss" in line]
        assert [line["step"] for line in written] == list(range(1, EPOCHS * BATCHES + 1))
        assert [line["seconds"] for line in written] == sorted(line["seconds"] for line in written)
    if words in SAME_BITS:
        undisturbed = attempt(tmp_path / "undisturbed", words)
        assert all(torch.equal(*pair) for pair in zip(undisturbed[0][1:], ended[0][1:], strict=True))
    assert all(torch.isfinite(parameters).all() for _, parameters in ended)


def test_a_run_that_is_done_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    attempt(folder, "sync")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    assert {code for code, _ in attempt(folder, "sync")} == {0}
    assert capsys.readouterr().out == f"{folder} is done already\n"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_an_attempt_without_a_checkpoint_is_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    assert {code for code, _ in attempt(folder, "sync")} == {0}
    assert (folder / "attempt-1" / "run.json").read_text() == "{}"
    assert (folder / "DONE").exists()


@pytest.mark.parametrize(
    ("words", "more", "complaint"),
    [
        ("stale", {}, "--resume: run was begun with --strategy ['sync'], not ['stale']"),
        ("sync", {"lr": 0.5}, "--resume: run was begun with --lr 0.1, not 0.5"),
        ("sync", {"ranks": 2}, "--ranks 3, not 2"),
    ],
)
def test_another_run_is_not_gone_on_with(
    words: str, more: dict[str, Any], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    attempt(folder, "sync", {0: 3})
    before = (folder / "run.json").read_bytes()
    capsys.readouterr()
    assert {code for code, _ in attempt(folder, words, **more)} == {2}
    assert complaint in capsys.readouterr().err
    assert (folder / "run.json").read_bytes() == before


def test_a_checkpoint_of_other_ranks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcasync.run.resume import open_run

    folder = tmp_path / "run"
    attempt(folder, "sync", {0: 3})
    options = Options(results=tmp_path, name="run", resume=True, world="sim", ranks=RANKS, epochs=EPOCHS)
    with pytest.raises(UsageError, match=r"ckpt/\d+ is of 3 ranks; start as many, not 4"):
        open_run(options, "job", 4)


def test_resume_needs_a_name() -> None:
    with pytest.raises(UsageError, match="--resume: which run"):
        Options(resume=True).resolve()
