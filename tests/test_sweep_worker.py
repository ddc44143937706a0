"""Workers: real sweeps of the tiny job on simulated ranks, side by side, pruned, stopped, taken over."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState, create_trial

from hpcasync.errors import UsageError
from hpcasync.report.table import console
from hpcasync.sweep.folder import Folder
from hpcasync.sweep.space import read_space
from hpcasync.sweep.study import Asked, Study, outcome
from hpcasync.sweep.trial import Outcome, Signals
from hpcasync.sweep.worker import Worker
from tests.sweep_trials import CASES, FAKE, JOB, ROOT, grow_old, space

SIMULATED = ["--world", "sim", "--ranks", "2", "--epochs", "1"]
ENDLESS = ["--world", "sim", "--ranks", "2", "--seconds", "1e12", "--evaluate-every", "4"]


def test_a_worker_that_was_taken_for_dead_gives_up_its_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a SIGSTOP: another worker takes the trial over while this one sleeps, and then it goes on."""
    text = "[search]\nlr = [0.5]"
    worker = Worker(tmp_path / "sweep", space(tmp_path, text), JOB, [], None)

    def sleep(self: Worker, asked: Asked) -> list[str]:
        grow_old(tmp_path / "sweep" / "beats" / asked.name)
        other = Study(Folder(tmp_path / "sweep"), read_space(tmp_path / "sweep.toml"), 4)
        taken = other.ask()
        assert taken is not None
        other.tell(taken, Outcome("done", 1.0))
        action = "write('done', {}, {}); evaluate(1, 1.0, {'loss': 2.0}); (folder / 'DONE').touch()"
        return [sys.executable, "-c", FAKE + action, str(tmp_path / "sweep" / asked.name)]

    monkeypatch.setattr(Worker, "_argv", sleep)
    assert worker.work(Signals()) == 0
    assert "trial 0  was taken over by another worker" in capsys.readouterr().out
    assert [(trial.number, trial.value) for trial in worker._study.trials] == [(1, 1.0)]


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
    mine = Study(Folder(tmp_path / "results" / "grid"), read_space(tmp_path / "grid.toml"), 4)
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
