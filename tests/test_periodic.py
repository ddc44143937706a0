"""Checkpoints from time to time: the run that writes them goes on as if it did not, and one that is killed resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hpcasync.run import Run
from hpcasync.run import checkpoint as checkpoints
from hpcasync.run.checkpoint import describe, latest
from hpcasync.run.trace import read_traces
from tests import batch_job
from tests.small_job import RANKS, SAME_BITS, STEPS, Killed, attempt, check_steps, codes, lines, parameters
from tests.variants import VARIANTS

EVERY_SECONDS = 2.2  # of steps that take 1 s on average

pytestmark = pytest.mark.usefixtures("quick")
every_strategy = pytest.mark.parametrize("words", [str(variant) for variant in VARIANTS])
periodic = partial(attempt, checkpoint_every=EVERY_SECONDS)


def kill_in(step: int) -> Callable[[Run], None]:
    def kill(run: Run) -> None:
        if run._totals.steps == step:
            raise Killed

    return kill


def check_done(folder: Path, ended: list[tuple[int, Tensor] | None]) -> None:
    """Every rank has made every step once, and all have the same sound parameters."""
    assert codes(ended) == {0}
    assert (folder / "DONE").exists()
    for rank in range(RANKS):
        check_steps(folder, rank)
    first, *others = parameters(ended)
    assert all(torch.equal(each, first) for each in others)
    assert torch.isfinite(first).all()


@every_strategy
def test_a_run_that_writes_checkpoints_goes_on(words: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = periodic(folder, words)
    check_done(folder, ended)
    pauses = [sum("checkpoint_seconds" in line for line in lines(folder, rank)) for rank in range(RANKS)]
    assert pauses[0] >= 1
    assert len(set(pauses)) == 1
    assert len(list((folder / "ckpt").iterdir())) == min(2, pauses[0])  # and nothing that is not complete
    if words in SAME_BITS:
        undisturbed = attempt(tmp_path / "undisturbed", words)
        assert torch.equal(parameters(undisturbed)[0], parameters(ended)[0])


@every_strategy
def test_a_run_that_was_killed_goes_on_from_the_last_checkpoint(words: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        periodic(folder, words, in_step=kill_in(STEPS - 2), trace=True)
    found = latest(folder)
    assert found is not None
    saved = describe(found)[0]
    assert 0 < saved <= STEPS - 2
    check_done(folder, periodic(folder, words, trace=True))
    first, second = json.loads((folder / "run.json").read_text())["attempts"]
    assert (first["status"], second["status"], second["step"]) == ("cut off", "done", saved)
    assert [len(trace) for trace in read_traces(folder)] == [STEPS] * RANKS


@pytest.mark.parametrize("words", SAME_BITS)
def test_a_run_that_was_killed_ends_as_if_nothing_had_happened(words: str, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        periodic(tmp_path / "run", words, in_step=kill_in(STEPS - 1))
    resumed = periodic(tmp_path / "run", words)
    undisturbed = attempt(tmp_path / "undisturbed", words)
    assert torch.equal(parameters(undisturbed)[0], parameters(resumed)[0])


@pytest.mark.parametrize("words", ["sync", "downpour bound=1", "eager bound=1", "easgd", "sgp"])
def test_a_rank_that_has_made_its_last_step_is_in_the_checkpoint(words: str, tmp_path: Path) -> None:
    """Rank 0 makes more steps than the others, and none of them waits for it any more, nor it for them."""
    folder = tmp_path / "run"

    def leave_early(run: Run) -> None:
        if run.rank > 0 and run._totals.steps == 3:
            run._stop._steps = 4

    ended = periodic(folder, words, in_step=leave_early)
    assert codes(ended) == {0}
    found = latest(folder)
    assert found is not None
    assert describe(found)[0] > 4
    totals = [checkpoints.read_rank(found, rank)["totals"]["steps"] for rank in range(RANKS)]
    assert totals == [describe(found)[0], 4, 4]
    assert [sum("loss" in line for line in lines(folder, rank)) for rank in range(RANKS)] == [STEPS, 4, 4]


@pytest.mark.parametrize(("words", "victim"), [("sync", 0), ("sync", 1), ("eager", 1), ("easgd", 0)])
def test_a_death_leaves_the_checkpoint_before_it(words: str, victim: int, tmp_path: Path) -> None:
    """At every call, those in a checkpoint included."""
    kept = []
    for call in range(1, 10_000):
        folder = tmp_path / str(call)
        ended = periodic(folder, words, fail={victim: call}, epochs=2)
        completed = [*reversed(checkpoints._completed(folder))]  # the oldest first
        assert latest(folder) == (completed[-1] if completed else None)
        members = [describe(each)[1] for each in completed]
        left = [rank for rank in range(RANKS) if ended[rank] is not None]
        assert all(each in (list(range(RANKS)), left) for each in members)
        kept.append(members)
        if None not in ended:
            break
    assert kept[0] == []
    assert kept[-1] and all(len(each) == RANKS for each in kept[-1])
    assert any(each and len(each[-1]) < RANKS for each in kept)  # those that are left write checkpoints, too


def test_a_rank_that_dies_while_it_writes_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write = tmp_path / "run", checkpoints.write_rank

    def dies(run: Path, step: int, rank: int, state: Any) -> dict[str, str]:
        told = write(run, step, rank, state)
        if rank == 1 and checkpoints._completed(run):
            raise Killed
        return told

    monkeypatch.setattr(checkpoints, "write_rank", dies)
    with pytest.raises(Killed):
        periodic(folder, "sync")
    monkeypatch.undo()
    before = latest(folder)
    assert before is not None
    saved = describe(before)[0]
    assert len(list((folder / "ckpt").glob(".*"))) == 1
    check_done(folder, periodic(folder, "sync"))
    assert json.loads((folder / "run.json").read_text())["attempts"][1]["step"] == saved
    assert not list((folder / "ckpt").glob(".*"))


@pytest.mark.alone
@pytest.mark.timeout(240)
def test_real_ranks_that_are_killed_resume_with_the_same_bits(tmp_path: Path) -> None:
    def run(name: str, *words: str) -> int:
        argv = [sys.executable, "-m", "hpcasync.cli", "run", "-n", "2", str(batch_job.__file__), "--steps", "60"]
        argv += ["--step-seconds", "0.02", "--results", str(tmp_path), "--name", name, *words]
        env = os.environ | {"PYTHONPATH": str(Path(batch_job.__file__).parent.parent)}
        return subprocess.run(argv, capture_output=True, env=env, timeout=70, check=False).returncode

    periodic = ("--checkpoint-every", "0.2")
    assert run("killed", *periodic, "--kill", "0:50", "--kill", "1:50") != 0
    assert not (tmp_path / "killed" / "DONE").exists()
    assert run("killed", *periodic, "--resume") == 0
    assert run("undisturbed") == 0
    first, second = json.loads((tmp_path / "killed" / "run.json").read_text())["attempts"]
    assert (first["status"], second["status"]) == ("cut off", "done")
    assert 0 < second["step"] < 50
    assert (tmp_path / "killed/parameters.json").read_text() == (tmp_path / "undisturbed/parameters.json").read_text()
