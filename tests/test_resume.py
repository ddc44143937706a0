"""A run that a signal stops and --resume goes on with: as if nothing had happened, as far as the algorithm allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcasync.errors import UsageError
from hpcasync.launch.execute import REQUEUE
from hpcasync.run import Options, Run
from hpcasync.run.checkpoint import describe, latest, read_rank
from hpcasync.run.resume import find_run
from tests.small_job import EPOCHS, RANKS, SAME_BITS, STEPS, attempt, check_steps, codes, lines, parameters
from tests.variants import VARIANTS

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("stopped", [{1: 5}, {0: 0}, {0: 4, 1: 4, 2: 4}, {2: 11}], ids=str)
@pytest.mark.parametrize("words", [str(variant) for variant in VARIANTS])
def test_a_run_goes_on_where_it_was_stopped(words: str, stopped: dict[int, int], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert codes(attempt(folder, words, stop=stopped)) == {REQUEUE}
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert not (folder / "DONE").exists()
    ended = attempt(folder, words)
    assert codes(ended) == {0}
    assert (folder / "DONE").exists()
    document = json.loads((folder / "run.json").read_text())
    assert [each["status"] for each in document["attempts"]] == ["interrupted", "done"]
    assert document["summary"]["steps"]["value"] == RANKS * STEPS
    for rank in range(RANKS):
        check_steps(folder, rank)
    if words in SAME_BITS:
        undisturbed = attempt(tmp_path / "undisturbed", words)
        assert torch.equal(parameters(undisturbed)[0], parameters(ended)[0])
    assert all(torch.isfinite(each).all() for each in parameters(ended))


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("words", [str(variant) for variant in VARIANTS])
def test_the_place_of_a_dead_rank_is_filled(words: str, victim: int, tmp_path: Path) -> None:
    folder, left = tmp_path / "run", [rank for rank in range(RANKS) if rank != victim]
    assert codes(attempt(folder, words, fail={victim: 3.0}, stop={left[0]: 7})) == {REQUEUE}
    found = latest(folder)
    assert found is not None
    saved, members = describe(found)
    assert members == left
    begun: list[bool] = []

    def compare(run: Run) -> None:
        if not begun:
            expected = read_rank(found, 0)["strategy"]["parameters"]
            begun.append(all(map(torch.equal, (pair.params for pair in run.strategy.replica.pairs), expected)))

    ended = attempt(folder, words, in_step=compare)
    assert codes(ended) == {0} and len(ended) == RANKS and begun == [True]
    assert all(torch.equal(each, parameters(ended)[0]) for each in parameters(ended))
    steps = [[line["step"] for line in lines(folder, rank) if "loss" in line] for rank in range(RANKS)]
    assert all(made == sorted(set(made)) for made in steps)
    assert [number for number in steps[victim] if number > saved] == list(range(saved + 1, steps[victim][-1] + 1))
    assert steps[victim][-1] > saved
    document = json.loads((folder / "run.json").read_text())
    assert [failure["attempt"] for failure in document["failures"]] == [1]
    assert [each["status"] for each in document["attempts"]] == ["interrupted", "done"]


def test_those_who_are_left_can_go_on_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    attempt(folder, "sync", fail={1: 3.0}, stop={0: 7})
    options = Options(results=tmp_path, name="run", resume=True, world="sim", ranks=RANKS, epochs=EPOCHS)
    assert find_run(options, 2, "job").checkpoint == latest(folder)
    with pytest.raises(UsageError, match=r"ckpt/\d+ is for 2 or 3 ranks, not 4"):
        find_run(options, 4, "job")


def test_a_run_that_is_done_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    attempt(folder, "sync")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    assert codes(attempt(folder, "sync")) == {0}
    assert capsys.readouterr().out == f"{folder} is done: nothing to do\n"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "more", "complaint"),
    [
        ("stale", {}, "--resume: run was begun with --strategy ['sync'], not ['stale']"),
        ("sync", {"epochs": EPOCHS + 1}, f"--resume: run was begun with --epochs {EPOCHS}, not {EPOCHS + 1}"),
        ("sync", {"ranks": 2}, "--ranks 3, not 2"),
    ],
)
def test_a_run_that_is_done_is_not_taken_for_another(
    words: str, more: dict[str, Any], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    attempt(folder, "sync")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    assert codes(attempt(folder, words, **more)) == {2}
    assert complaint in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_of_another_job_or_of_other_ranks_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    attempt(folder, "sync")
    options = Options(results=tmp_path, name="run", resume=True, world="sim", ranks=RANKS, epochs=EPOCHS)
    with pytest.raises(UsageError, match=r"run was begun by job\.py, not by other\.py"):
        find_run(options, RANKS, "other")
    with pytest.raises(UsageError, match=f"run is for {RANKS} ranks, not 4"):
        find_run(options, 4, "job")


def test_an_attempt_without_a_checkpoint_is_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    assert codes(attempt(folder, "sync")) == {0}
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
    attempt(folder, "sync", stop={0: 3})
    before = (folder / "run.json").read_bytes()
    capsys.readouterr()
    assert codes(attempt(folder, words, **more)) == {2}
    assert complaint in capsys.readouterr().err
    assert (folder / "run.json").read_bytes() == before


def test_a_checkpoint_of_other_ranks_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    attempt(folder, "sync", stop={0: 3})
    options = Options(results=tmp_path, name="run", resume=True, world="sim", ranks=RANKS, epochs=EPOCHS)
    with pytest.raises(UsageError, match=r"ckpt/\d+ is for 3 ranks, not 4"):
        find_run(options, 4, "job")


def test_resume_needs_a_name() -> None:
    with pytest.raises(UsageError, match="--resume: which run"):
        Options(resume=True).resolve()
