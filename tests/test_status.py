"""status and watch: runs by the files that they leave behind or are writing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hpcasync.errors import UsageError
from hpcasync.launch.queue import job_states
from hpcasync.report.tail import Tail
from hpcasync.status import watch as watching
from hpcasync.status.main import observe_all, status
from hpcasync.status.ranks import LATELY, Pace, Paces, stragglers
from hpcasync.status.screen import bar, line, screen, sparks
from hpcasync.status.state import SILENT_SECONDS, State
from hpcasync.status.table import duration, terminal
from hpcasync.status.watch import watch

JOB = str(Path(__file__).with_name("tiny_job.py"))
ROOT = Path(__file__).parent.parent


def make_run(folder: Path, ranks: int = 4, steps: int = 20, **changes: Any) -> Path:
    """Rank r takes 0.1 s per step, rank 3 four times as long; every rank waits 0.05 s per step."""
    folder.mkdir(parents=True)
    document = {
        "schema": "hpcasync.run/1",
        "name": folder.name,
        "job": "digits",
        "status": "running",
        "strategy": {"name": "downpour", "options": {}},
        "world": {"kind": "mpi", "size": ranks},
        "config": {"strategy": ["downpour", "pull=4"], "steps": 2 * steps, "target": 0.9},
        "attempts": [{"step": 0, "slurm": {}}],
        "failures": [],
        "summary": {},
    }
    (folder / "run.json").write_text(json.dumps(document | changes))
    for rank in range(ranks):
        write_steps(folder, rank, 1, steps)
    evaluate(folder, steps, 0.5)
    return folder


def write_steps(folder: Path, rank: int, first: int, last: int, more: str = "") -> None:
    busy = 0.4 if rank == 3 else 0.1
    lines = [
        {"step": k, "seconds": k * (busy + 0.05), "loss": 1 / k, "samples": 8 * k, "waited": 0.05 * k}
        | {"staleness": rank}
        for k in range(first, last + 1)
    ]
    with (folder / f"metrics.rank{rank}.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines) + more)


def evaluate(folder: Path, step: int, accuracy: float) -> None:
    entry = {"step": step, "seconds": 0.15 * step, "evaluation": {"accuracy": accuracy}}
    with (folder / "metrics.rank0.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def change(folder: Path, **changes: Any) -> None:
    document = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(document | changes))


def grow_old(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    for path in folder.iterdir():
        os.utime(path, (then, then))


def see(folder: Path) -> State:
    return observe_all([folder])[0]


# Following files


def test_a_tail_gives_every_line_once_and_waits_for_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    tail = Tail(path)
    assert tail.lines() == []
    path.write_bytes(b"one\ntw")
    assert tail.lines() == [b"one"]
    with path.open("ab") as file:
        file.write(b"o\nthree\n")
    assert tail.lines() == [b"two", b"three"]
    assert tail.lines() == []
    path.write_bytes(b"one\n")  # as a run that is resumed does
    assert tail.lines() == [b"one"]


@given(st.lists(st.binary(max_size=20)), st.integers(1, 9))
def test_what_comes_in_pieces_is_read_as_whole(tmp_path_factory: Any, lines: list[bytes], size: int) -> None:
    path = tmp_path_factory.mktemp("tail") / "lines"
    content = b"\n".join(lines)
    tail, found = Tail(path), []
    for i in range(0, len(content), size):
        with path.open("ab") as file:
            file.write(content[i : i + size])
        found += tail.lines()
    assert found == content.split(b"\n")[:-1]


def test_the_end_of_a_long_file_is_enough_for_a_pace(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", ranks=2, steps=2000)
    paces = Paces(folder)
    paces.look()
    assert len(Tail(folder / "metrics.rank1.jsonl", 1 << 15).lines()) < 2000
    assert [paces.ranks[rank].steps for rank in (0, 1)] == [2000, 2000]
    assert paces.ranks[1].samples_per_second == pytest.approx(8 / 0.15)
    assert [each.values for each in paces.evaluations] == [{"accuracy": 0.5}]


# Paces


def test_a_pace_by_its_closed_form(tmp_path: Path) -> None:
    paces = Paces(make_run(tmp_path / "run"))
    paces.look()
    fast, slow = paces.ranks[1], paces.ranks[3]
    assert fast.samples_per_second == pytest.approx(8 / 0.15)
    assert slow.samples_per_second == pytest.approx(8 / 0.45)
    assert fast.wait_share == pytest.approx(0.05 / 0.15)
    assert (fast.busy_seconds, slow.busy_seconds) == (pytest.approx(0.1), pytest.approx(0.4))
    assert (fast.staleness, slow.staleness) == (1.0, 3.0)
    assert stragglers(list(paces.ranks.values())) == {3: pytest.approx(4.0)}


def test_whoever_holds_all_up_is_found_where_all_are_equally_fast() -> None:
    """Under sync every rank makes as many steps; the straggler is the one that does not wait."""
    paces = [Pace(rank) for rank in range(3)]
    for pace in paces:
        for step in range(1, 9):
            waited = 0.0 if pace.rank == 2 else 0.6 * step
            pace.add({"step": step, "seconds": 0.9 * step, "samples": step, "loss": 1, "waited": waited})
    assert len({pace.samples_per_second for pace in paces}) == 1
    assert stragglers(paces) == {2: pytest.approx(3.0)}


@given(st.lists(st.floats(0.01, 100.0), min_size=2, max_size=8))
def test_only_who_takes_much_longer_than_the_median_is_a_straggler(step_seconds: list[float]) -> None:
    paces = []
    for rank, seconds in enumerate(step_seconds):
        pace = Pace(rank)
        for step in range(1, 4):
            pace.add({"step": step, "seconds": seconds * step, "loss": 0.0, "samples": step, "waited": 0.0})
        paces.append(pace)
    found = stragglers(paces)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert all(factor > 1.5 for factor in found.values())
    assert len(found) <= len(paces) / 2


def test_a_resumed_run_is_judged_by_what_came_after() -> None:
    pace = Pace(0)
    for step in (*range(1, 2 * LATELY), *range(5, 9)):
        pace.add({"step": step, "seconds": float(step), "loss": 1.0, "samples": 2 * step, "waited": 0.0})
    assert (pace.steps, pace.samples_per_second) == (8, 2.0)


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


# Watching


def test_watch_follows_a_run_until_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run")

    def write_on(seconds: float) -> None:
        assert seconds == 0.25
        if not (folder / "more").exists():
            (folder / "more").touch()
            write_steps(folder, 0, 21, 30)
            evaluate(folder, 30, 0.75)
        else:
            change(folder, status="done", summary={"accuracy": {"value": 0.75}})
            (folder / "DONE").touch()

    monkeypatch.setattr(watching.time, "sleep", write_on)
    assert watch([str(folder), "--every", "0.25"]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("run  running  50 %  step 20") and "accuracy 0.5000" in first
    assert second.startswith("run  running  75 %  step 30") and "accuracy 0.7500" in second
    assert third.startswith("run  done  100 %  step 30")
    assert all("stragglers 3 ×4.0" in each for each in (first, second, third))


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_watch_ends_with_a_run_that_is_not_done(status: str, tmp_path: Path) -> None:
    assert watch([str(make_run(tmp_path / "run", status=status))]) == 1


def test_an_interrupt_ends_watching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.time, "sleep", interrupt)
    assert watch([str(make_run(tmp_path / "run"))]) == 130


def test_slurm_is_asked_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def answer(jobs: list[str]) -> dict[str, str]:
        asked.append(jobs)
        return {"7": "NODE_FAIL"}

    monkeypatch.setattr(watching, "job_states", answer)
    look = watching.Looks(make_run(tmp_path / "run", attempts=[{"slurm": {"job_id": "7"}}]))
    assert [look().label, look().label] == ["cut off", "cut off"]
    assert asked == [["7"]]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [(["."], "no run.json there"), ([".", "--every", "0"], "--every 0.0: it must be a positive number")],
)
def test_a_mistake_with_watch(
    words: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=complaint):
        watch(words)


def shown(state: State, width: int, height: int) -> str:
    sheet = Console(width=width, height=height, force_terminal=True, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    with sheet.file:
        sheet.print(screen(state, width, height))
    return sheet.export_text()


def test_the_screen_shows_every_rank_in_eighty_columns(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", ranks=6, failures=[{"rank": 5, "seconds": 2.5}], attempts=[{}, {}])
    told = shown(see(folder), 80, 40)
    assert "run   running" in told
    assert "attempt 2" in told and "50 %" in told and "target 0.9" in told
    rows = {row.split()[0]: row for row in told.splitlines() if row.strip()[:1].isdigit()}
    assert list(rows) == [str(rank) for rank in range(6)]
    assert "straggler ×4.0" in rows["3"] and "died at 2 s" in rows["5"]
    assert rows["1"].count("━") == 3 * rows["3"].count("━")  # 0.15 s a step and 0.45 s
    assert max(map(len, told.splitlines())) <= 80


def test_where_ranks_do_not_fit_the_slow_and_the_dead_are_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", ranks=40, failures=[{"rank": 39, "seconds": 1.0}])
    told = shown(see(folder), 100, 24)
    assert "straggler" in told and "died at 1 s" in told
    assert "and 31 more ranks  53.3 to 53.3 samples/s each" in told
    assert len(told.splitlines()) <= 24


def test_the_screen_of_a_run_that_has_written_nothing_yet(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", config={})
    for path in folder.glob("*.jsonl"):
        path.unlink()
    state = see(folder)
    assert math.isnan(state.progress) and state.steps == 0
    assert "running" in shown(state, 80, 24)
    assert "samples/s" in line(state)
    Console(file=sys.stdout).print(terminal([state]))


def test_bars_and_curves() -> None:
    assert [bar(share, 2) for share in (-1.0, 0.0, 0.25, 0.5, 1.0, 9.0, math.nan)] == ["", "", "╸", "━", "━━", "━━", ""]
    assert sparks([1, 2, 3, 4, 5, 6, 7, 8], 8) == "▁▂▃▄▅▆▇█"
    assert sparks([0, 1], 4) == "▁▁██"
    assert sparks([3.0], 3) == "▁▁▁"
    assert sparks([math.nan], 3) == ""


def test_a_real_run_is_watched_while_it_is_written(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = ["--world", "sim", "--ranks", "2", "--slow", "1:4", "--seconds", "400", "--name", "run"]
    argv = [sys.executable, JOB, *options, "--strategy", "downpour", "--results", str(tmp_path)]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL) as run:
        while run.poll() is None and not (tmp_path / "run" / "run.json").exists():
            time.sleep(0.02)
        assert watch([str(tmp_path / "run"), "--every", "0.05"]) == 0
        assert run.wait(60) == 0
    state = see(tmp_path / "run")
    assert state.label == "done"
    assert list(stragglers(list(state.paces.ranks.values()))) == [1]
    assert state.paces.ranks[0].steps == 400
