"""What a sweep leaves behind: the table, the shares of its parameters, and the plots."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import create_trial

from hpcasync.report.table import console
from hpcasync.sweep import plot, table
from hpcasync.sweep.study import best, importances


def done(number: int, cost: float, params: dict[str, Any], seconds: float = 1.0) -> optuna.trial.FrozenTrial:
    kinds = {
        name: optuna.distributions.CategoricalDistribution(("sync", "stale"))
        if isinstance(value, str)
        else optuna.distributions.FloatDistribution(0.0, 100.0)
        for name, value in params.items()
    }
    attributes = {
        "folder": f"trial-{number:04d}",
        "outcome": {"state": "done", "metric": "accuracy", "better": "higher", "value": -cost},
    }
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
    found = [(seconds, value) for seconds, value, _ in plot.front(curves, metric == "accuracy")]
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
        trial.user_attrs["outcome"] |= {"metric": metric, "better": "higher" if metric == "accuracy" else "lower"}
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
