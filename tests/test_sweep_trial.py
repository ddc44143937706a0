"""What becomes of a trial: the clock that trials share, how its run ends, and the signals that reach it."""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path

import pytest

from hpcasync.report.read import Evaluation
from hpcasync.sweep.curve import FIRST_TICK, TICKS_AFTER, Curve
from hpcasync.sweep.trial import Outcome, Signals, perform
from tests.sweep_trials import CASES, FAKE

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
    curve = Curve(reports, by_seconds=True, better="higher")
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
    curve = Curve(reports, by_seconds=False, better="lower")
    assert not curve.add(Evaluation(1, 70.0, {"loss": 3.0}))
    assert curve.add(Evaluation(2, 90.0, {"loss": 2.0}))
    assert reports.told == [(0, 3.0), (1, 3.0), (2, 2.0)]


def test_a_metric_that_is_no_number_ends_the_trial() -> None:
    reports = Reports()
    curve = Curve(reports, by_seconds=False, better="lower")
    assert curve.add(Evaluation(1, 1.0, {"loss": math.nan}))
    assert curve.has_diverged
    assert not reports.told


# What becomes of a trial: jobs of a few lines that leave a run folder behind


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
    assert found.refused == (case in ("refused", "undeclared"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGUSR1, 85), (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
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


def test_a_signal_that_came_too_early_reaches_the_run(tmp_path: Path) -> None:
    """Between two runs; the job is so quick that it may die of it before it listens."""
    with Signals().listening() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        found = act(tmp_path, "write('running', {}, {}); wait(); sys.exit(143)", signals=signals)
    assert (found.state, found.code) == ("interrupted", 143)
