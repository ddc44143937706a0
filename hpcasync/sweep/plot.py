"""The plots of a sweep: accuracy against time with its Pareto front, and which parameters matter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from hpcasync.report.plot import label_ends
from hpcasync.report.style import LIGHT
from hpcasync.report.svg import INK, figure, save
from hpcasync.report.tail import Evaluations
from hpcasync.sweep.space import STRATEGY
from hpcasync.sweep.study import FOLDER, outcome

MARKERS = "osD^vPX"
APART = 1.9  # names on the front, as a factor of seconds
ACCURACIES = (0, 0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)

Floats = NDArray[np.float64]
Point = tuple[float, float]  # (seconds, value of the metric)


def pareto(trials: Sequence[FrozenTrial], folder: Path, simulated: bool) -> None:
    """Writes pareto.svg and pareto.png: the evaluations of every trial, and the best value by every moment.

    Every evaluation of a run counts, not only its last: the run could have been ended there. The ends of trials that
    were pruned or have missed the target are hollow.
    """
    judged = next((outcome(trial) for trial in trials if outcome(trial).get("metric")), {})
    metric, up = str(judged.get("metric", "")), judged.get("better") == "higher"
    curves = {trial.number: _evaluated(folder / trial.user_attrs.get(FOLDER, "-"), metric) for trial in trials}
    if not any(curves.values()):
        return
    strategies = list(dict.fromkeys(str(trial.params.get(STRATEGY, "")) for trial in trials))
    with figure(1, 4.1) as (drawn, (axes,)):
        ends = []
        for index, strategy in enumerate(strategies, start=1):
            shade, marker = LIGHT[1 + (index - 1) % (len(LIGHT) - 1)], MARKERS[index % len(MARKERS)]
            own = [trial for trial in trials if str(trial.params.get(STRATEGY, "")) == strategy]
            for trial in own:
                _curve(axes, curves[trial.number], shade, marker, trial.state == TrialState.COMPLETE)
            last = [curves[trial.number][-1][1] for trial in own if curves[trial.number]]
            if last and strategy:
                ends.append((max(last) if up else min(last), strategy, shade, marker))
        _front(axes, curves, up)
        _frame(axes, curves, metric, simulated)
        label_ends(axes, ends)
        save(drawn, folder / "pareto")


def _curve(axes: Axes, points: Sequence[Point], shade: str, marker: str, done: bool) -> None:
    if not points:
        return
    axes.plot(*zip(*points, strict=True), color=shade, linewidth=1, alpha=0.5, zorder=2)
    axes.plot(*points[-1], marker, color=shade, markerfacecolor=shade if done else "white", markersize=5.5, zorder=3)


def front(curves: Mapping[int, Sequence[Point]], up: bool) -> list[tuple[float, float, int]]:
    """(seconds, value, trial) of the evaluations that no other beats in one without losing in the other.

    ``up``: higher values are better.
    """
    sign = -1 if up else 1
    found: list[tuple[float, float, int]] = []
    for seconds, cost, number in sorted((s, sign * value, number) for number, c in curves.items() for s, value in c):
        if not found or cost < sign * found[-1][1]:
            found.append((seconds, sign * cost, number))
    return found


def importance(shares: Mapping[str, Mapping[str, float]], folder: Path) -> None:
    """Writes importance.svg and importance.png: a panel for all trials, and one per strategy with its own."""
    if not shares:
        return
    count = max(map(len, shares.values()))
    with figure(len(shares), 0.8 + len(shares) * (0.55 + 0.34 * count)) as (drawn, panels):
        for (name, found), axes in zip(shares.items(), panels, strict=True):
            ordered = sorted(found.items(), key=lambda item: -item[1])
            for place, (_, share) in enumerate(ordered):
                axes.barh(place, share, height=0.62, color=LIGHT[1], alpha=0.9)
                axes.text(share, place, f"  {share:.0%}", va="center_baseline", fontsize="small", color=INK)
            axes.set_yticks(range(len(ordered)), [parameter for parameter, _ in ordered])
            axes.set_ylim(count - 0.4, -0.6)
            axes.tick_params(axis="y", length=0)
            axes.spines.left.set_visible(False)
            axes.set_title(name, loc="left", fontsize="medium")
        panels[-1].set_xlim(0, 1.12)
        panels[-1].set_xticks([0, 0.25, 0.5, 0.75, 1])
        panels[-1].xaxis.set_major_formatter(PercentFormatter(1.0))
        panels[-1].set_xlabel("share of the variance that the parameter explains")
        save(drawn, folder / "importance")


def _evaluated(folder: Path, metric: str) -> list[Point]:
    points = [(each.seconds, each.values.get(metric, math.nan)) for each in Evaluations(folder).new()]
    return [(seconds, value) for seconds, value in points if math.isfinite(value) and seconds > 0]


def _front(axes: Axes, curves: Mapping[int, Sequence[Point]], up: bool) -> None:
    points = front(curves, up)
    x, y = [seconds for seconds, _, _ in points], [value for _, value, _ in points]
    end = max(seconds for curve in curves.values() for seconds, _ in curve)
    axes.step([*x, end], [*y, y[-1]], where="post", color=INK, linewidth=1.4, zorder=4)
    axes.plot(x, y, "o", color=INK, markersize=3.5, zorder=5)
    left = math.inf
    for seconds, value, number in reversed(points):  # the last, and before it those that leave room for their names
        if seconds > left:
            continue
        left = seconds / APART
        axes.annotate(
            f"trial {number}",
            (seconds, value),
            xytext=(-5, 5 if up else -5),
            textcoords="offset points",
            ha="right",
            va="bottom" if up else "top",
            fontsize="small",
            color=INK,
            zorder=6,
        )


def _frame(axes: Axes, curves: Mapping[int, Sequence[Point]], metric: str, simulated: bool) -> None:
    seconds = [x for curve in curves.values() for x, _ in curve]
    values = [y for curve in curves.values() for _, y in curve]
    axes.set_xscale("log")
    axes.set_xlim(min(seconds) / 1.8, max(seconds) * 1.15)  # room for a name on the left
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("simulated seconds" if simulated else "seconds")
    if metric == "accuracy" and min(values) >= 0 and max(values) <= 1:
        _stretch(axes, min(values), max(values))
    elif min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{metric} of every trial, and the best so far", loc="left", fontsize="medium")


def _stretch(axes: Axes, low: float, high: float) -> None:
    """An axis of accuracies on which every halving of the error takes as much room as the one before."""
    least = max((1 - high) / 2, 1e-4)

    def place(accuracy: Floats) -> Floats:
        return -np.log(np.maximum(1 - accuracy, least))

    axes.set_yscale("function", functions=(place, lambda height: 1 - np.exp(-height)))
    axes.set_ylim(low, 1 - max((1 - high) / 1.5, least))
    shown = [tick for tick in ACCURACIES if low <= tick <= 1 - least]
    axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
    axes.minorticks_off()
