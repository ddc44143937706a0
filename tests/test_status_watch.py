"""hpcasync watch: runs followed until they end, and the screen that shows them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from hpcasync.errors import UsageError
from hpcasync.status import watch as watching
from hpcasync.status.ranks import stragglers
from hpcasync.status.screen import bar, line, screen, sparks
from hpcasync.status.state import State
from hpcasync.status.table import terminal
from hpcasync.status.watch import watch
from tests.status_runs import change, evaluate, make_run, see, write_steps

JOB = str(Path(__file__).with_name("tiny_job.py"))
ROOT = Path(__file__).parent.parent


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
