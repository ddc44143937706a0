"""Which trial comes next: of one worker, of two, and after one that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from optuna.trial import TrialState

from hpcasync.sweep import table
from hpcasync.sweep.folder import Folder
from hpcasync.sweep.study import ATTEMPTS, Study
from hpcasync.sweep.trial import Outcome
from tests.sweep_trials import ROOT, grow_old, space, study


def test_no_more_trials_than_asked_for_and_waiting_ones_first(tmp_path: Path) -> None:
    mine = study(tmp_path, "trials = 3\n[search]\nlr = { low = 0.1, high = 1.0 }")
    other = Study(Folder(tmp_path / "sweep"), space(tmp_path, (tmp_path / "sweep.toml").read_text()), 4)
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
    [strategy.eager]
    bound = [2, 4]
    """
    mine = study(tmp_path, text)
    first, second = mine.ask(), mine.ask()
    assert first is not None and second is not None
    assert [(each.parameters["lr"], each.parameters["strategy"]) for each in (first, second)] == [
        (0.4, "sync"),
        (0.4, "eager"),
    ]
    mine.tell(first, Outcome("done", 1.0, staleness=0.0))  # nothing stale: no second trial
    mine.tell(second, Outcome("done", 1.0, staleness=3.0))
    third = mine.ask()
    assert third is not None
    assert third.parameters == {**second.parameters, "lr": 0.4 / (1 + 3.0)}
    assert [each.number for each in mine.trials] == [0, 1, 2]


def test_what_adds_up_begins_with_an_nth_of_syncs_rate(tmp_path: Path) -> None:
    mine = study(
        tmp_path, "trials = 2\n[search]\nlr = { low = 0.01, high = 1.0, sync = 0.4 }\n[strategy.hogwild]", ranks=8
    )
    first = mine.ask()
    assert first is not None and first.parameters == {"lr": 0.05, "strategy": "hogwild"}
    mine.tell(first, Outcome("done", 1.0, staleness=7.0))
    assert [each.state for each in mine.trials] == [TrialState.COMPLETE]  # the staleness is in its rate already
    assert "sync's rate / 8 ranks" in table.markdown(mine.trials)


KILLED = """
import os, signal, sys
from pathlib import Path
from hpcasync.sweep.folder import Folder
from hpcasync.sweep.space import read_space
from hpcasync.sweep.study import Study
Study(Folder(Path(sys.argv[1])), read_space(Path(sys.argv[2])), 4).ask()
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
