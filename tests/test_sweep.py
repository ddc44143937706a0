"""Sweeps: what is searched, what becomes of a trial, workers side by side, and what is left behind."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from hpcasync.errors import UsageError
from hpcasync.report.read import Evaluation
from hpcasync.report.table import console
from hpcasync.sweep import main as sweep_main
from hpcasync.sweep import plot, table
from hpcasync.sweep.curve import FIRST_TICK, TICKS_AFTER, Curve
from hpcasync.sweep.folder import LOST_SECONDS, Folder
from hpcasync.sweep.space import Space, read_space, words
from hpcasync.sweep.study import ATTEMPTS, Asked, Study, best, importances, outcome
from hpcasync.sweep.trial import Outcome, Signals, perform
from hpcasync.sweep.worker import Worker

JOB = str(Path(__file__).with_name("tiny_job.py"))
ROOT = Path(__file__).parent.parent
SIMULATED = ["--world", "sim", "--ranks", "2", "--epochs", "1"]
ENDLESS = ["--world", "sim", "--ranks", "2", "--seconds", "1e12", "--evaluate-every", "4"]


def space(tmp_path: Path, text: str) -> Space:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return read_space(path)


def study(tmp_path: Path, text: str) -> Study:
    folder = Folder(tmp_path / "sweep")
    folder.enter({"sweep": text})
    return Study(folder, space(tmp_path, text))


# What is searched


def test_every_combination_once(tmp_path: Path) -> None:
    found = space(
        tmp_path,
        """
        [search]
        lr = [0.1, 1]
        compress = [false, "int8"]
        [strategy.sync]
        [strategy.stale]
        bound = [1, 2]
        """,
    ).combinations()
    assert len(found) == 2 * 2 * (1 + 2)
    told = [" ".join(words(parameters)) for parameters in found]
    assert len(set(told)) == len(told)
    assert told[0] == "--lr=0.1 --strategy sync"
    assert "--lr=1 --compress=int8 --strategy stale bound=2" in told


@given(st.data())
def test_a_draw_lies_within_its_space(data: st.DataObject) -> None:
    drawn = {
        "lr": data.draw(st.floats(1e-3, 1.0)),
        "batch_size": data.draw(st.integers(1, 64)),
        "strategy": "downpour",
        "downpour.pull": data.draw(st.sampled_from([1, 2])),
        "trace": data.draw(st.booleans()),
    }
    told = words(drawn)
    assert told[0] == f"--lr={drawn['lr']}"
    assert f"--batch-size={drawn['batch_size']}" in told
    assert told[told.index("--strategy") + 1 :][:2] == ["downpour", f"pull={drawn['downpour.pull']}"]
    assert ("--trace" in told) == drawn["trace"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "nothing is searched"),
        ("x = 1", "unknown entry 'x'; the known ones are trials, seed"),
        ("[search", "not TOML"),
        ("search = 1", "search = 1: it must be a table"),
        ("trials = 0\n[search]\nlr = [1]", "trials = 0: it must be a whole number, 1 or more"),
        ("seed = 1.5\n[search]\nlr = [1]", "seed = 1.5: it must be a whole number, 0 or more"),
        ("[search]\nlr = 0.1", "lr = 0.1: it must be a list of values, or a range"),
        ("[search]\nlr = []", "lr = []"),
        ("[search]\nlr = [[1]]", "lr: [1] is no text, number, true or false"),
        ("[search]\nlr = [nan]", "lr: nan"),
        ('[search]\ndata = ["a\\nb"]', "holds a character that no option has"),
        ("[search]\nlr = [1, 1.0]", "lr: a value is in its list twice"),
        ("[search]\nlr = { low = 1, high = 2 }", "lr is a range, which has no end of combinations"),
        ("trials = 2\n[search]\nlr = { low = 1 }", "lr: low or high is missing"),
        ("trials = 2\n[search]\nlr = { low = 1, high = 2, by = 1 }", "lr: unknown entry 'by'"),
        ("trials = 2\n[search]\nlr = { low = 2, high = 2 }", "lr: low = 2 must be below high = 2"),
        ("trials = 2\n[search]\nlr = { low = 0, high = 2, log = true }", "needs a low above 0, and no step"),
        ("trials = 2\n[search]\nlr = { low = 1, high = 2, log = 1 }", "log = 1: it must be true or false"),
        ('trials = 2\n[search]\nlr = { low = "a", high = 2 }', "lr: low = 'a': it must be a number"),
        ("trials = 2\n[search]\nlr = { low = 1, high = 2, step = 0 }", "lr: step = 0 must be above 0"),
        ("trials = 2\n[search]\nlr = { low = 1, high = 2, sync = -1 }", "lr: sync = -1: it must be above 0"),
        ('[search]\nname = ["a", "b"]', "name cannot be searched"),
        ('[search]\nstrategy = ["sync"]', "strategy cannot be searched: give [strategy.NAME] tables"),
        ('[search]\n"a b" = [1]', "'a b' is not the name of an option"),
        ("strategy = 1", "strategy = 1: it must be a table, [strategy.NAME]"),
        ("[strategy.sync]", "nothing is searched"),
        ("[strategy.nope]\n[strategy.sync]", "unknown strategy 'nope'"),
        ("[strategy]\nsync = 1", "strategy.sync = 1: it must be a table"),
        ("[strategy.stale]\nfrob = [1]", "strategy stale has no option 'frob'"),
        ('[strategy.stale]\nbound = ["a"]', "bound=a is not an integer"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_on_one_line(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as told:
        space(tmp_path, text)
    assert str(told.value).startswith(f"{tmp_path}/sweep.toml: ")
    assert complaint in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["grid.toml"], "no job file"),
        (["grid.toml", "missing.py"], "missing.py: there is no such job file"),
        (["missing.toml", JOB], "missing.toml: it cannot be read (No such file"),
        ([JOB], "no file of what is searched"),
        (["-n", "0", "grid.toml", JOB], "-n 0: it must be 1 or more"),
        (["--name", "a/b", "grid.toml", JOB], "--name a/b: it must be a folder's name"),
        (["--frobnicate", "grid.toml", JOB], "unknown option --frobnicate; the known options are -n --launcher"),
        (["grid.toml", JOB, "--results", "out"], "--results: the sweep names its runs; give --results before the file"),
        (["grid.toml", JOB, "--resume"], "--resume: the sweep names its runs"),
        (["grid.toml", JOB, "--lr=3"], "--lr is searched"),
    ],
)
def test_a_mistake_is_told_and_nothing_begins(
    command: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grid.toml").write_text("[search]\nlr = [1, 2]")
    with pytest.raises(UsageError) as told:
        sweep_main.main(command)
    assert complaint in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.toml"]


def test_without_optuna_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grid.toml").write_text("[search]\nlr = [1, 2]")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'hpcasync\[sweep\]'"):
        sweep_main.main(["grid.toml", JOB])


# The clock that trials share


class Reports:
    """Takes what a trial is told; prunes from ``prune_at`` on."""

    def __init__(self, prune_at: int = 1 << 30) -> None:
        self.told: list[tuple[int, float]] = []
        self._prune_at = prune_at

    def report(self, value: float, step: int) -> None:
        self.told.append((step + FIRST_TICK, value))

    def should_prune(self) -> bool:
        return bool(self.told) and self.told[-1][0] >= self._prune_at


def test_a_tick_shows_the_last_evaluation_up_to_then() -> None:
    reports = Reports()
    curve = Curve(reports, by_seconds=True)
    assert not curve.add(Evaluation(1, 1.0, {"accuracy": 0.25, "loss": 9.0}))
    assert not curve.add(Evaluation(2, 1.0, {"accuracy": 0.99}))  # there before: a resumed run's
    assert not curve.add(Evaluation(3, 3.0, {"accuracy": 0.5}))
    assert not curve.add(Evaluation(4, 4.0, {"accuracy": 0.75}))
    # ticks at 1, 1.41, 2, 2.83 and 4 s; costs are negated accuracies
    assert reports.told == [(0, -0.25), (1, -0.25), (2, -0.25), (3, -0.25), (4, -0.75)]
    curve.end()
    assert reports.told[5:] == [(5 + i, -0.75) for i in range(TICKS_AFTER)]
    assert (curve.metric, curve.value, curve.cost) == ("accuracy", 0.75, -0.75)


def test_without_a_limit_in_seconds_evaluations_are_counted() -> None:
    reports = Reports(prune_at=2)
    curve = Curve(reports, by_seconds=False)
    assert not curve.add(Evaluation(1, 70.0, {"loss": 3.0}))
    assert curve.add(Evaluation(2, 90.0, {"loss": 2.0}))
    assert reports.told == [(0, 3.0), (1, 3.0), (2, 2.0)]


def test_a_metric_that_is_no_number_ends_the_trial() -> None:
    reports = Reports()
    curve = Curve(reports, by_seconds=False)
    assert curve.add(Evaluation(1, 1.0, {"loss": math.nan}))
    assert curve.has_diverged
    assert not reports.told


# What becomes of a trial: jobs of a few lines that leave a run folder behind

FAKE = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
folder.mkdir()
ended = []
signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
signal.signal(signal.SIGUSR1, lambda number, frame: ended.append(number))
def write(status, config, summary):
    document = {"schema": "hpcasync.run/1", "name": "fake", "job": "fake", "status": status, "config": config,
                "strategy": {"name": "sync", "options": {}}, "world": {"kind": "mpi", "size": 1},
                "summary": {name: {"value": value} for name, value in summary.items()}}
    (folder / "run.json").write_text(json.dumps(document))
def evaluate(step, seconds, values):
    with (folder / "metrics.rank0.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "seconds": seconds, "evaluation": values}) + chr(10))
def wait():
    while not ended:
        time.sleep(0.01)
"""
CASES = {
    "done": (
        'write("done", {"target": None}, {"seconds": 5.0, "staleness_mean": 1.5}); evaluate(1, 4.0, {"accuracy": 0.5});'
        '(folder / "DONE").touch()',
        Outcome("done", -0.5, "accuracy", 0.5, 5.0, staleness=1.5),
    ),
    "target": (
        'write("done", {"target": 0.4}, {"seconds": 5.0, "seconds_to_target": 3.0}); evaluate(1, 3, {"accuracy": 0.5});'
        '(folder / "DONE").touch()',
        Outcome("done", 3.0, "accuracy", 0.5, 5.0),
    ),
    "missed": (
        'write("done", {"target": 0.9}, {"seconds": 5.0}); evaluate(1, 3.0, {"accuracy": 0.5});'
        '(folder / "DONE").touch()',
        Outcome("missed", math.nan, "accuracy", 0.5, 5.0),
    ),
    "diverged": (
        'write("done", {"target": None}, {"seconds": 5.0}); evaluate(1, 3.0, {"loss": None});(folder / "DONE").touch()',
        Outcome("diverged", math.nan, "loss", math.nan, 5.0),
    ),
    "pruned": (
        'write("running", {"seconds": 9}, {}); evaluate(1, 1, {"loss": 7.0}); evaluate(1, 2, {"loss": 8.0}); wait();'
        'write("interrupted", {"seconds": 9}, {"seconds": 2.0}); sys.exit(143)',
        Outcome("pruned", math.nan, "loss", 8.0, 2.0),
    ),
    "stopped": (
        'write("interrupted", {}, {"seconds": 2.0}); evaluate(1, 1.0, {"loss": 7.0}); sys.exit(85)',
        Outcome("interrupted", math.nan, "loss", 7.0, 2.0, code=85),
    ),
    "raised": (
        'raise RuntimeError("out of luck")',
        Outcome("failed", reason="RuntimeError: out of luck", code=1),
    ),
    "refused": (
        'sys.exit(print("hpcasync: error: --lr -1: it must be a positive number", file=sys.stderr) or 2)',
        Outcome("failed", reason="error: --lr -1: it must be a positive number", code=2),
    ),
    "silent": ("sys.exit(3)", Outcome("failed", reason="ended with exit code 3", code=3)),
    "torn": ('(folder / "DONE").touch()', Outcome("failed", reason="the run is done, but")),
}


def act(tmp_path: Path, action: str, signals: Signals | None = None) -> Outcome:
    argv = [sys.executable, "-c", FAKE + action, str(tmp_path / "run")]
    reports = Reports(prune_at=2)
    return perform(argv, tmp_path / "run", tmp_path / "log", reports, lambda: None, signals or Signals())


@pytest.mark.parametrize("case", CASES)
def test_what_becomes_of_a_trial(case: str, tmp_path: Path) -> None:
    action, expected = CASES[case]
    found = act(tmp_path, action)
    for name in ("state", "cost", "metric", "value", "seconds", "staleness", "code"):
        assert repr(getattr(found, name)) == repr(getattr(expected, name)), name
    assert found.reason.startswith(expected.reason)
    assert found.refused == (case == "refused")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 85), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_asks_the_run_for_a_clean_end(number: int, code: int, tmp_path: Path) -> None:
    """The job signals its worker, as Slurm would, once it listens itself. It gets SIGUSR1 in any case."""
    action = f"write('running', {{}}, {{}}); os.kill(os.getppid(), {number}); wait(); print(ended); sys.exit(85)"
    with Signals().listening() as signals:
        found = act(tmp_path, action, signals=signals)
    assert (found.state, found.code) == ("interrupted", code)
    assert signals.received == number
    assert (tmp_path / "log").read_text() == f"[{signal.SIGUSR1.value}]\n"


def test_a_second_sigterm_reaches_the_run_as_it_is(tmp_path: Path) -> None:
    action = (
        "write('running', {}, {}); os.kill(os.getppid(), signal.SIGTERM); wait(); ended.clear();"
        "os.kill(os.getppid(), signal.SIGTERM); wait(); print(ended)"
    )
    with Signals().listening() as signals:
        assert act(tmp_path, action, signals=signals).state == "interrupted"
    assert (tmp_path / "log").read_text() == f"[{signal.SIGTERM.value}]\n"


# Which trial comes next


def test_no_more_trials_than_asked_for_and_waiting_ones_first(tmp_path: Path) -> None:
    mine = study(tmp_path, "trials = 3\n[search]\nlr = { low = 0.1, high = 1.0 }")
    other = Study(Folder(tmp_path / "sweep"), space(tmp_path, (tmp_path / "sweep.toml").read_text()))
    asked = [mine.ask(), other.ask(), mine.ask()]
    assert [each.trial.number for each in asked if each] == [0, 1, 2]
    assert other.ask() is None
    assert asked[1] is not None
    other.tell(asked[1], Outcome("interrupted", code=85))
    again = mine.ask()
    assert again is not None
    assert (again.parameters, again.name, again.resumes) == (asked[1].parameters, "trial-0001", True)
    assert mine.ask() is None
    assert len(mine.trials) == 3


def test_one_worker_draws_the_same_trials_every_time(tmp_path: Path) -> None:
    text = "trials = 2\nseed = 7\n[search]\nlr = { low = 0.1, high = 1.0 }"
    drawn = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        mine = study(tmp_path / name, text)
        drawn.append([asked.parameters for asked in (mine.ask(), mine.ask()) if asked])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


def test_syncs_rate_first_then_what_follows_from_the_staleness(tmp_path: Path) -> None:
    text = """
    trials = 6
    [search]
    lr = { low = 0.01, high = 1.0, sync = 0.4 }
    [strategy.sync]
    [strategy.downpour]
    bound = [2, 4]
    """
    mine = study(tmp_path, text)
    first, second = mine.ask(), mine.ask()
    assert first is not None and second is not None
    assert [(each.parameters["lr"], each.parameters["strategy"]) for each in (first, second)] == [
        (0.4, "sync"),
        (0.4, "downpour"),
    ]
    mine.tell(first, Outcome("done", 1.0, staleness=0.0))  # nothing stale: no second trial
    mine.tell(second, Outcome("done", 1.0, staleness=3.0))
    third = mine.ask()
    assert third is not None
    assert third.parameters == {**second.parameters, "lr": 0.4 / (1 + 3.0)}
    assert [each.number for each in mine.trials] == [0, 1, 2]


KILLED = """
import os, signal, sys
from pathlib import Path
from hpcasync.sweep.folder import Folder
from hpcasync.sweep.space import read_space
from hpcasync.sweep.study import Study
Study(Folder(Path(sys.argv[1])), read_space(Path(sys.argv[2]))).ask()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_trial_of_a_killed_worker_is_taken_over(tmp_path: Path) -> None:
    mine = study(tmp_path, "[search]\nlr = [0.5]")
    argv = [sys.executable, "-c", KILLED, str(tmp_path / "sweep"), str(tmp_path / "sweep.toml")]
    killed = subprocess.run(argv, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert mine.ask() is None  # it may live
    name = "trial-0000"
    for attempt in range(1, ATTEMPTS):
        grow_old(tmp_path / "sweep" / "beats" / name)
        taken = mine.ask()
        assert taken is not None
        assert taken.parameters == {"lr": 0.5}
        assert not taken.resumes  # its run may live: a folder of its own
        assert taken.name == f"trial-{attempt:04d}"
        name = taken.name
    grow_old(tmp_path / "sweep" / "beats" / name)
    assert mine.ask() is None  # enough
    assert [trial.state for trial in mine.trials] == [TrialState.FAIL]
    assert "lost with its worker" in table.markdown(mine.trials)


def test_a_worker_that_was_taken_for_dead_gives_up_its_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a SIGSTOP: another worker takes the trial over while this one sleeps, and then it goes on."""
    text = "[search]\nlr = [0.5]"
    worker = Worker(tmp_path / "sweep", space(tmp_path, text), JOB, [], None)

    def sleep(self: Worker, asked: Asked) -> list[str]:
        grow_old(tmp_path / "sweep" / "beats" / asked.name)
        other = Study(Folder(tmp_path / "sweep"), read_space(tmp_path / "sweep.toml"))
        taken = other.ask()
        assert taken is not None
        other.tell(taken, Outcome("done", 1.0))
        action = "write('done', {}, {}); evaluate(1, 1.0, {'loss': 2.0}); (folder / 'DONE').touch()"
        return [sys.executable, "-c", FAKE + action, str(tmp_path / "sweep" / asked.name)]

    monkeypatch.setattr(Worker, "_argv", sleep)
    assert worker.work(Signals()) == 0
    assert "trial 0  was taken over by another worker" in capsys.readouterr().out
    assert [(trial.number, trial.value) for trial in worker._study.trials] == [(1, 1.0)]


def test_a_signal_that_came_too_early_reaches_the_run(tmp_path: Path) -> None:
    """Between two runs; the job is so quick that it may die of it before it listens."""
    with Signals().listening() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        found = act(tmp_path, "write('running', {}, {}); wait(); sys.exit(143)", signals=signals)
    assert (found.state, found.code) == ("interrupted", 143)


def grow_old(path: Path) -> None:
    then = path.stat().st_mtime - LOST_SECONDS - 1
    os.utime(path, (then, then))


# The folder


def test_another_sweep_is_refused_and_more_trials_are_welcome(tmp_path: Path) -> None:
    text = "trials = 1\n[search]\nlr = { low = 0.1, high = 1.0 }"
    path = tmp_path / "sweep"
    one = Worker(path, space(tmp_path, text), JOB, ["--steps", "1"], None)
    assert one._study.ask() is not None
    more = Worker(
        path, space(tmp_path, text.replace("1\n", "2\n", 1)), JOB, ["--steps", "1"], None, ["--binding", "none"]
    )
    assert more._study.ask() is not None
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    for arguments in (
        (space(tmp_path, text.replace("0.1", "0.2")), JOB, ["--steps", "1"], None),
        (space(tmp_path, text), JOB, ["--steps", "2"], None),
        (space(tmp_path, text), JOB, ["--steps", "1"], 3),
    ):
        with pytest.raises(UsageError, match=r"was begun with .* choose another --name"):
            Worker(path, *arguments)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_folder_of_something_else_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is no sweep"):
        Folder(tmp_path).enter({})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match="cannot make the folder"):
        Folder(tmp_path / "thesis.txt" / "sweep").enter({})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "sweep.json").write_text("{")
    with pytest.raises(UsageError, match="not valid JSON"):
        Folder(tmp_path / "a").enter({})


@pytest.mark.parametrize("call", range(12))
def test_two_workers_make_the_folder_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The other one enters, or is checked, just before each look and each change of this one."""
    calls = itertools.count()
    alone = Folder(tmp_path / "sweep")

    def interleaved(name: str) -> Callable[..., Any]:
        original = getattr(Path, name)

        def patched(self: Path, *args: Any, **kwargs: Any) -> Any:
            if next(calls) == call:
                other = Folder(tmp_path / "sweep")
                if os.path.lexists(tmp_path / "sweep" / "sweep.lock"):
                    other._check_free(tmp_path / "sweep" / "sweep.json")  # then it waits for the lock
                else:
                    other.enter({"sweep": "a"})
            return original(self, *args, **kwargs)

        return patched

    for name in ("exists", "is_dir", "iterdir", "mkdir", "open", "replace"):
        monkeypatch.setattr(Path, name, interleaved(name))
    alone.enter({"sweep": "a"})
    assert next(calls) > call
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"sweep.json", "logs", "beats"}


# Real sweeps of the tiny job on simulated ranks


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


QUICK = """
sys.argv[1] = sys.argv[sys.argv.index("--results") + 1] + "/" + sys.argv[sys.argv.index("--name") + 1]
folder = Path(sys.argv[1])
folder.mkdir()
write("done", {"lr": sys.argv}, {"seconds": 2.0})
evaluate(1, 2.0, {"loss": 3.0})
(folder / "DONE").touch()
"""  # a job that is over at once


@pytest.mark.usefixtures("at_root")
def test_two_workers_side_by_side_lose_and_repeat_nothing(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text("[search]\nlr = [1, 2, 3]\nbatch_size = [4, false]")
    (tmp_path / "quick.py").write_text(FAKE.replace("folder.mkdir()", "") + QUICK)
    command = ["--results", "out", "grid.toml", "quick.py", "--world", "sim"]
    argv = [sys.executable, "-m", "hpcasync.cli", "sweep", *command]
    workers = [subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [worker.communicate(timeout=100)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    folder = tmp_path / "out" / "grid"
    runs = sorted(folder.glob("trial-*"))
    assert [run.name for run in runs] == [f"trial-{i:04d}" for i in range(6)]
    given = [json.loads((run / "run.json").read_text())["config"]["lr"] for run in runs]
    options = [sorted(word for word in words if word.startswith(("--lr", "--batch"))) for words in given]
    one, other = (["--batch-size=4", f"--lr={lr}"] for lr in (1, 2)), ([f"--lr={lr}"] for lr in (1, 2, 3))
    assert sorted(options) == sorted([*one, ["--batch-size=4", "--lr=3"], *other])
    ended = [line.split() for each in told for line in each.splitlines() if "  done  loss " in line]
    assert sorted(line[1] for line in ended) == [str(i) for i in range(6)]
    assert (folder / "table.md").read_text().count("| done |") == 6
    assert not list(folder.glob("*.lock"))


@pytest.mark.usefixtures("at_root")
def test_a_sweep_that_is_over_stays_as_it_is(tmp_path: Path) -> None:
    grid = space(tmp_path, "[search]\nlr = [0.1]")
    worker = Worker(tmp_path / "sweep", grid, JOB, SIMULATED, None)
    assert worker.work(Signals()) == 0
    worker.show(console())
    (trial,) = worker._study.trials
    document = json.loads((tmp_path / "sweep" / "trial-0000" / "run.json").read_text())
    assert (document["status"], document["config"]["lr"], document["world"]["size"]) == ("done", 0.1, 2)
    assert trial.value == document["summary"]["loss"]["value"]
    assert outcome(trial)["staleness"] == document["summary"]["staleness_mean"]["value"]
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {
        *("sweep.json", "journal.log", "beats", "logs", "trial-0000", "table.md", "pareto.svg", "pareto.png")
    }
    before = {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("*") if path.is_file()}
    assert Worker(tmp_path / "sweep", grid, JOB, SIMULATED, None).work(Signals()) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("at_root")
def test_pruning_stops_a_run_that_would_go_on(tmp_path: Path) -> None:
    text = "trials = 6\n[search]\nlr = { low = 0.001, high = 0.01 }"
    worker = Worker(tmp_path / "sweep", space(tmp_path, text), JOB, ENDLESS, None)
    for _ in range(5):  # better at every tick than any loss
        worker._study._study.add_trial(
            create_trial(value=-1.0, params={}, intermediate_values=dict.fromkeys(range(200), -1.0))
        )
    assert worker.work(Signals()) == 0
    pruned = worker._study.trials[-1]
    assert pruned.state == TrialState.PRUNED
    assert outcome(pruned)["state"] == "pruned"
    document = json.loads((tmp_path / "sweep" / "trial-0005" / "run.json").read_text())
    assert document["status"] == "interrupted"
    assert not (tmp_path / "sweep" / "trial-0005" / "ckpt").exists()


@pytest.mark.usefixtures("at_root")
def test_a_worker_that_is_stopped_leaves_a_checkpoint_and_its_trial(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text("[search]\nlr = [0.001, 0.002]")
    argv = [sys.executable, "-m", "hpcasync.cli", "sweep", "grid.toml", JOB, *ENDLESS]
    with subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as worker:
        metrics = tmp_path / "results" / "grid" / "trial-0000" / "metrics.rank0.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        worker.send_signal(signal.SIGUSR1)
        assert worker.wait(60) == 85
    assert list((metrics.parent / "ckpt").iterdir())
    mine = Study(Folder(tmp_path / "results" / "grid"), read_space(tmp_path / "grid.toml"))
    names = {asked.name: (asked.parameters, asked.resumes) for asked in (mine.ask(), mine.ask()) if asked}
    assert names == {"trial-0000": ({"lr": 0.001}, True), "trial-0001": ({"lr": 0.002}, False)}
    assert mine.ask() is None


def test_a_job_that_refuses_its_options_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [sys.executable, "-c", FAKE + CASES["refused"][0], str(tmp_path / "run")]
    monkeypatch.setattr(Worker, "_argv", lambda self, asked: argv)
    worker = Worker(tmp_path / "s", space(tmp_path, "[search]\nlr = [-1, 1]"), JOB, SIMULATED, None)
    with pytest.raises(UsageError, match=r"^--lr -1: it must be a positive number \(in .*trial-0000.log\)$"):
        worker.work(Signals())
    assert [trial.state for trial in worker._study.trials] == [TrialState.FAIL, TrialState.WAITING]


def test_a_trial_that_fails_is_told_by_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(self: Worker, asked: Asked) -> list[str]:
        case = CASES["raised" if asked.parameters["lr"] == 1 else "done"][0]
        return [sys.executable, "-c", FAKE + case, str(tmp_path / "s" / asked.name)]

    monkeypatch.setattr(Worker, "_argv", act)
    worker = Worker(tmp_path / "s", space(tmp_path, "[search]\nlr = [1, 2]"), JOB, SIMULATED, None)
    assert worker.work(Signals()) == 1
    assert [trial.state for trial in worker._study.trials] == [TrialState.FAIL, TrialState.COMPLETE]


# What is left behind


def done(number: int, cost: float, params: dict[str, Any], seconds: float = 1.0) -> optuna.trial.FrozenTrial:
    kinds = {
        name: optuna.distributions.CategoricalDistribution(("sync", "stale"))
        if isinstance(value, str)
        else optuna.distributions.FloatDistribution(0.0, 100.0)
        for name, value in params.items()
    }
    attributes = {"folder": f"trial-{number:04d}", "outcome": {"state": "done", "metric": "accuracy", "value": -cost}}
    trial = create_trial(value=cost, params=params, distributions=kinds, user_attrs=attributes)
    trial.number = number
    return trial


def test_the_best_trial_comes_first(tmp_path: Path) -> None:
    trials = [done(0, -0.5, {"lr": 0.1}), done(1, -0.75, {"lr": 0.2}), done(2, -0.6, {"lr": 0.25})]
    first = best(trials)
    assert first is not None and first.number == 1
    _, cells = table.lines(trials)
    assert [line[:3] for line in cells] == [["1", "0.2", "0.7500"], ["2", "0.25", "0.6000"], ["0", "0.1", "0.5000"]]
    console().print(table.terminal(trials * 5))


def test_importance_is_the_parameters_that_matters() -> None:
    trials = [
        done(i, float(lr), {"lr": float(lr), "jitter": float(i * 7 % 5), "strategy": name})
        for i, (lr, name) in enumerate((lr, name) for lr in range(6) for name in ("sync", "stale"))
    ]
    shares = importances(trials)
    assert set(shares) == {"all trials", "sync", "stale"}
    for found in shares.values():
        assert max(found, key=lambda name: found[name]) == "lr"
        assert sum(found.values()) == pytest.approx(1.0)
    assert importances(trials[:4]) == {}
    assert importances([]) == {}


@given(
    st.dictionaries(
        st.integers(0, 5),
        st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 1)), min_size=1, max_size=8),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["accuracy", "loss"]),
)
def test_nothing_beats_the_front(curves: dict[int, list[tuple[float, float]]], metric: str) -> None:
    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        no_worse = one[1] >= other[1] if metric == "accuracy" else one[1] <= other[1]
        return one[0] <= other[0] and no_worse and one != other

    everything = [point for curve in curves.values() for point in curve]
    found = [(seconds, value) for seconds, value, _ in plot.front(curves, metric)]
    assert found
    assert set(found) == {point for point in everything if not any(beats(other, point) for other in everything)}


@pytest.fixture
def evaluated(tmp_path: Path) -> Iterator[Path]:
    for number, (scale, top) in enumerate([(1.0, 0.9), (3.0, 0.97), (2.0, 0.4)]):
        folder = tmp_path / f"trial-{number:04d}"
        folder.mkdir()
        lines = [
            {"step": i, "seconds": scale * i, "evaluation": {"accuracy": top - 0.5**i, "loss": 0.5**i}}
            for i in range(1, 8)
        ]
        (folder / "metrics.rank0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn": ')
    yield tmp_path


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_plots_are_drawn_from_the_runs_evaluations(evaluated: Path, metric: str) -> None:
    trials = [done(number, -0.9, {"strategy": "sync", "lr": float(number)}) for number in range(3)]
    for trial in trials:
        trial.user_attrs["outcome"]["metric"] = metric
    plot.pareto(trials, evaluated, simulated=True)
    plot.importance({"all trials": {"lr": 0.75, "batch_size": 0.25}}, evaluated)
    drawn = (evaluated / "pareto.svg").read_text()
    assert "simulated seconds" in drawn
    assert f"{metric} of every trial, and the best so far" in drawn
    assert "75%" in (evaluated / "importance.svg").read_text()
    assert {path.name for path in evaluated.glob("*.png")} == {"pareto.png", "importance.png"}


def test_nothing_to_draw_leaves_no_plot(tmp_path: Path) -> None:
    plot.pareto([], tmp_path, simulated=False)
    plot.importance({}, tmp_path)
    assert not list(tmp_path.iterdir())
