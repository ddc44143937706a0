"""hpcasync status: the states of runs by their files and by Slurm, in a table and as JSON."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from hpcasync.errors import UsageError
from hpcasync.launch.queue import job_states
from hpcasync.status.main import observe_all, status
from hpcasync.status.ranks import Paces
from hpcasync.status.screen import line
from hpcasync.status.state import SILENT_SECONDS, observe
from hpcasync.status.table import duration
from tests.status_runs import change, make_run, see, write_steps


def grow_old(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    for path in folder.iterdir():
        os.utime(path, (then, then))


def test_runs_that_lie_deeper_are_another_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The repository's published runs are in results/NAME/RUN; a user's own are in results/RUN."""
    make_run(tmp_path / "own", status="done")
    make_run(tmp_path / "published" / "other", status="done")
    assert status([str(tmp_path), "--json", str(tmp_path / "status.json")]) == 0
    assert [entry["name"] for entry in json.loads((tmp_path / "status.json").read_text())] == ["own"]
    assert status([str(tmp_path / "published")]) == 0
    assert "other" in capsys.readouterr().out


# States


def test_the_states_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcasync.status.main.job_states", lambda jobs: {"7": "TIMEOUT", "8": "RUNNING"})
    for name in ("running", "silent", "interrupted"):
        make_run(tmp_path / name, status="running" if name == "silent" else name)
    for name, job in (("cut", "7"), ("queued", "8")):
        make_run(tmp_path / name, attempts=[{"slurm": {"job_id": "1"}}, {"slurm": {"job_id": job}}])
    done = make_run(tmp_path / "done", status="done", summary={"samples_per_second": {"value": 12.0}})
    (done / "DONE").touch()
    failed = make_run(tmp_path / "failed", status="failed")
    (failed / "FAILED.json").write_text("{}")
    grow_old(tmp_path / "silent", SILENT_SECONDS + 20)
    found = {state.record.name: state for state in observe_all(sorted(tmp_path.iterdir()))}
    assert {name: state.label for name, state in found.items()} == {
        "running": "running",
        "silent": "silent",
        "interrupted": "interrupted",
        "cut": "cut off",
        "queued": "running",
        "done": "done",
        "failed": "failed",
    }
    assert found["silent"].idle_seconds >= SILENT_SECONDS
    assert (found["queued"].slurm, found["queued"].attempts) == ("RUNNING", 2)
    assert (found["running"].progress, found["done"].progress) == (0.5, 1.0)
    assert found["done"].samples_per_second == 12.0
    assert found["running"].samples_per_second == pytest.approx(8 / 0.15 * 3 + 8 / 0.45)


def test_a_run_of_slow_steps_is_not_silent(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", ranks=1, steps=1)
    with (folder / "metrics.rank0.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "seconds": 30.0, "loss": 1.0, "samples": 16, "waited": 0.05}) + "\n")
    grow_old(folder, 2 * SILENT_SECONDS)
    assert see(folder).label == "running"
    change(folder, world={"kind": "sim", "size": 1})  # its seconds are not ours
    grow_old(folder, 2 * SILENT_SECONDS)
    assert see(folder).label == "silent"


def test_the_dead_are_named_and_count_no_more(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", failures=[{"rank": 3, "seconds": 2.5}, {"rank": 99}, "?"])
    state = see(folder)
    assert state.entry()["dead_ranks"] == [3]
    assert state.samples_per_second == pytest.approx(3 * 8 / 0.15)
    assert state.entry()["stragglers"] == {}
    assert "3 died" in line(state)


def test_status_prints_a_line_per_run_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "results" / "one")
    write_steps(folder, 1, 21, 22, more='{"step": 23, "sec')
    make_run(tmp_path / "results" / "two", ranks=1)
    (tmp_path / "results" / "broken").mkdir()
    (tmp_path / "results" / "broken" / "run.json").write_text("{}")
    target = tmp_path / "status.json"
    for _ in range(2):  # and again over its own file
        assert status([str(tmp_path / "results"), "--json", str(target)]) == 0
    told = capsys.readouterr()
    assert "3 ×4.0" in told.out and "downpour pull=4" in told.out and "0.5000" in told.out
    assert "hpcasync: skipped" in told.err and "broken" in told.err
    entries = json.loads(target.read_text())
    assert [entry["name"] for entry in entries] == ["one", "two"]
    assert entries[0]["steps"] == 22
    assert entries[0]["metric"] == {"name": "accuracy", "value": 0.5}
    assert entries[0]["stragglers"] == {"3": pytest.approx(4.0)}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["."], "no run.json in"),
        ([".", "--json", "."], "it is a folder"),
        ([".", "--json", "no/where"], "there is no folder no"),
        ([".", "--json", "thesis"], "it exists and does not hold what hpcasync status writes"),
        (["--frobnicate"], "unknown option --frobnicate; the known options are --json"),
    ],
)
def test_a_mistake_with_status(
    words: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("thesis").write_text("mine")
    with pytest.raises(UsageError) as told:
        status(words)
    assert complaint in str(told.value)
    assert Path("thesis").read_text() == "mine"


def test_times_in_words() -> None:
    assert [duration(seconds) for seconds in (3, 89, 90, 7200, 5 * 86400)] == ["3 s", "89 s", "2 min", "2 h", "5 d"]


# Slurm


def command(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_squeue_first_then_sacct_then_the_file_of_completed_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that answer as Slurm 22.05 does, with and without a database of accounts."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    command(tmp_path, "squeue", "echo '12|RUNNING'; echo '13|PENDING'; echo '99|RUNNING'")
    command(tmp_path, "sacct", 'echo "$@" >>$0.log; [ "$1" = -X ] && echo "14|CANCELLED by 1000"')
    assert job_states(["12", "14", "13"]) == {"12": "RUNNING", "13": "PENDING", "14": "CANCELLED"}
    assert "--jobs=14" in (tmp_path / "sacct.log").read_text()
    command(
        tmp_path,
        "sacct",
        '[ "$1" = --completion ] || { echo "Slurm accounting storage is disabled" >&2; exit 1; }\n'
        "echo '15|NODE_FAIL'; echo '15|COMPLETED'",
    )
    assert job_states(["15", "16", "x; rm -rf /", ""]) == {"15": "COMPLETED"}
    command(tmp_path, "squeue", "exit 1")
    command(tmp_path, "sacct", "exit 1")
    assert job_states(["12"]) == {}
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert job_states(["12"]) == {}
    assert job_states([]) == {}


def test_who_died_in_an_earlier_attempt_is_there_again(tmp_path: Path) -> None:
    before, now = {"rank": 3, "seconds": 2.5, "attempt": 1}, {"rank": 2, "seconds": 3.5, "attempt": 2}
    folder = make_run(tmp_path / "run", failures=[before], attempts=[{}])
    paces = Paces(folder)
    assert observe(folder, paces, {}).entry()["dead_ranks"] == [3]
    change(folder, failures=[before], attempts=[{}, {}])
    assert observe(folder, paces, {}).entry()["dead_ranks"] == []
    change(folder, failures=[before, now], attempts=[{}, {}])
    assert observe(folder, paces, {}).entry()["dead_ranks"] == [2]
