"""The four plots of a setting. Each returns an <svg> element, or "" where the runs hold nothing to draw."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from hpcasync.report.groups import Group, Setting
from hpcasync.report.read import RunRecord
from hpcasync.report.statistics import decimate, moving_median
from hpcasync.report.style import LIGHT
from hpcasync.report.svg import INK, figure, render, series
from hpcasync.report.table import percent, significant

CURVE_POINTS = 2000
RAW_POINTS = 400
SMOOTHED_SHARE = 0.02
MARKERS = "osD^vPX"
LABEL_LETTERS = 22

Floats = NDArray[np.float64]
Curve = tuple[Floats, Floats]


def colour(setting: Setting, group: Group) -> int:
    """Which series colour a group has. Grey, the first, is the baseline's; the others come round again when used up."""
    if group is setting.baseline:
        return 0
    return (setting.groups.index(group) - (setting.baseline is not None)) % (len(LIGHT) - 1) + 1


def evaluations(setting: Setting) -> str:
    """The metric on held-out data against seconds, one curve per run."""
    curves = {group.label: [_evaluated(run, setting.metric) for run in group.finished] for group in setting.groups}
    if not any(len(x) for runs in curves.values() for x, _ in runs):
        return ""
    with figure(1, 3.9) as (drawn, (axes,)):
        ends = []
        for group in setting.groups:
            ends += _curves(axes, setting, group, curves[group.label])
        if setting.target is not None:
            axes.axhline(setting.target, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            ends.append((setting.target, f"target {setting.target:g}", INK, "_"))
        _seconds(axes, setting)
        _headline(axes, setting.metric)
        if setting.metric == "accuracy":
            _fit_shares(axes, [y for runs in curves.values() for _, y in runs], setting.target)
        label_ends(axes, ends)
        return render(drawn, f"evaluations {setting.title}", f"{setting.metric} against seconds, by strategy")


def losses(setting: Setting) -> str:
    """Training loss against seconds: a moving median per run, raw losses as dots."""
    if not any(len(_losses(run)[0]) for group in setting.groups for run in group.finished):
        return ""
    with figure(1, 3.9) as (drawn, (axes,)):
        ends, smoothed = [], []
        for group in setting.groups:
            curves = [_smoothed(*_losses(run)) for run in group.finished]
            smoothed += [y for _, y in curves]
            for x, y in (_losses(run) for run in group.finished):
                kept = decimate(len(x), max(1, RAW_POINTS // len(group.finished)))
                shade = series(colour(setting, group))
                axes.plot(x[kept], y[kept], ".", color=shade, markersize=2.5, alpha=0.35, markeredgewidth=0, zorder=1)
            ends += _curves(axes, setting, group, curves)
        scale = _fit_losses(axes, np.concatenate(smoothed))
        _seconds(axes, setting)
        _headline(axes, f"training loss{scale}")
        label_ends(axes, ends)
        return render(drawn, f"losses {setting.title}", "training loss against seconds, by strategy")


def staleness(setting: Setting) -> str:
    """Per group the share of steps by the staleness they met, one panel each on a common axis."""
    seen = {group.label: _pooled(group, "staleness") for group in setting.groups}
    groups = [group for group in setting.groups if len(seen[group.label])]
    if not groups:
        return ""
    largest = max(seen[group.label].max() for group in groups)
    width = max(1, int(np.ceil((largest + 1) / 40)))
    edges = np.arange(0, largest + 1 + width, width) - 0.5
    with figure(len(groups), 0.9 + 0.85 * len(groups)) as (drawn, panels):
        for group, axes in zip(groups, panels, strict=True):
            values = seen[group.label]
            counts, _ = np.histogram(values, edges)
            shares = counts / len(values)
            shade = series(colour(setting, group))
            axes.bar(edges[:-1] + width / 2, shares, width=0.86 * width, color=shade)
            axes.set_ylim(0, max(1e-9, shares.max()) * 1.5)
            axes.set_yticks([])
            axes.spines.left.set_visible(False)
            said = f"{_shortened(group.short)}: mean {values.mean():.2f}, largest {values.max():.4g}"
            axes.text(0.995, 0.97, said, transform=axes.transAxes, ha="right", va="top", color=shade)
        panels[0].set_title("share of steps by staleness", loc="left", fontsize="medium")
        panels[-1].set_xlabel("staleness")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        return render(drawn, f"staleness {setting.title}", "histogram of staleness, by strategy")


def throughput(setting: Setting) -> str:
    """Samples per second: a bar at the median, a dot per run where there are several, a stroke at the ideal."""
    rates = {group.label: group.spread("samples_per_second") for group in setting.groups}
    groups = [group for group in setting.groups if rates[group.label]]
    if not groups:
        return ""
    with figure(1, 1.0 + 0.62 * len(groups)) as (drawn, (axes,)):
        for row, group in enumerate(groups):
            rate = rates[group.label]
            assert rate is not None
            shade, median = series(colour(setting, group)), rate.median.value
            axes.barh(row, median, height=0.56, color=shade, alpha=0.9)
            if rate.n > 1:
                axes.plot([v.value for v in rate.values], [row] * rate.n, "o", color=INK, markersize=3)
            share = group.spread("ideal_share")
            if share and share.median.value > 0:
                ideal = median / share.median.value
                axes.plot([ideal, ideal], [row - 0.38, row + 0.38], color=INK, linewidth=2, solid_capstyle="butt")
                if row == 0:
                    axes.text(ideal, row - 0.44, "ideal", fontsize="small", ha="center", va="bottom")
        axes.set_yticks(range(len(groups)), [f"{_shortened(group.short)}\n{_rate(group)}" for group in groups])
        axes.set_ylim(len(groups) - 0.3, -0.85)
        axes.tick_params(axis="y", length=0)
        axes.spines.left.set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda value, _: significant(value))
        _headline(axes, f"samples per {'simulated ' if setting.simulated else ''}second")
        return render(drawn, f"throughput {setting.title}", "samples per second, by strategy")


def _rate(group: Group) -> str:
    rate, share = group.spread("samples_per_second"), group.spread("ideal_share")
    said = significant(rate.median.value) if rate else ""
    return f"{said} ({percent(share.median.value)})" if share else said


def _evaluated(run: RunRecord, metric: str) -> Curve:
    points = [(e.seconds, e.values[metric]) for e in run.evaluations if metric in e.values]
    return _finite(np.array(points, dtype=np.float64).reshape(-1, 2))


def _losses(run: RunRecord) -> Curve:
    """All ranks' losses, in the order of time."""
    points = np.stack([run.column("seconds"), run.column("loss")], axis=1)
    return _finite(points[np.argsort(points[:, 0], kind="stable")])


def _finite(points: Floats) -> Curve:
    kept = points[np.isfinite(points).all(axis=1)]
    return kept[:, 0], kept[:, 1]


def window(losses: int) -> int:
    """How many losses one point of the smoothed curve stands for: 2 % of them, at least 5, odd."""
    return max(5, round(SMOOTHED_SHARE * losses)) | 1


def _smoothed(x: Floats, y: Floats) -> Curve:
    kept = decimate(len(x), CURVE_POINTS)
    return x[kept], moving_median(y, window(len(y)), kept)


def _pooled(group: Group, column: str) -> Floats:
    values = np.concatenate([run.column(column) for run in group.finished] or [np.empty(0)])
    kept: Floats = values[np.isfinite(values) & (values >= 0)]
    return kept


End = tuple[float, str, str, str]


def _curves(axes: Axes, setting: Setting, group: Group, curves: Sequence[Curve]) -> list[End]:
    """Draws one curve per run, with a marker at its end; returns where the group's label belongs."""
    index = colour(setting, group)
    shade, marker = series(index), MARKERS[index % len(MARKERS)]
    drawn = [(x, y) for x, y in curves if len(x)]
    for x, y in drawn:
        kept = decimate(len(x), CURVE_POINTS)
        thin = len(drawn) > 1
        axes.plot(x[kept], y[kept], color=shade, linewidth=1.2 if thin else 1.8, alpha=0.75 if thin else 1, zorder=3)
        axes.plot(x[-1:], y[-1:], marker, color=shade, markersize=6, zorder=4)
    last = float(np.median([y[-1] for _, y in drawn])) if drawn else 0.0
    return [(last, _shortened(group.short), shade, marker)] if drawn else []


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Names the curves in the right margin, in the order of their last values, far enough apart to read."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    height = 0.075
    to_axes = axes.transData + axes.transAxes.inverted()
    x = axes.get_xlim()[1]  # any x will do: only heights are asked for
    places = sorted((float(to_axes.transform((x, last))[1]), name, shade, mark) for last, name, shade, mark in ends)
    heights = _apart([place for place, *_ in places], height)
    for at, (_, name, shade, mark) in zip(heights, places, strict=True):
        axes.plot(1.035, at, mark, color=shade, markersize=6, transform=axes.transAxes, clip_on=False)
        axes.text(1.065, at, name, color=shade, transform=axes.transAxes, va="center_baseline")


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places in [0, 1], moved as little as it takes to keep `gap` between neighbours."""
    heights: list[float] = []
    for place in places:
        heights.append(max(place, heights[-1] + gap if heights else 0.0))
    ceiling = 1.0
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], ceiling)
        ceiling = heights[index] - gap
    return heights


def _fit_shares(axes: Axes, curves: Sequence[Floats], target: float | None) -> None:
    """Shows where the curves part: the first tenth of each, the steep beginning, may be cut off."""
    values = np.concatenate([y[len(y) // 10 :] for y in curves] + ([np.array([target])] if target is not None else []))
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * max(high - low, 0.01)
    axes.set_ylim(low - margin, high + margin)


def _fit_losses(axes: Axes, smoothed: Floats) -> str:
    """A logarithmic axis where the smoothed losses span more than a factor of ten; returns words that say so."""
    low, high = float(smoothed.min()), float(smoothed.max())
    if low > 0 and high / low > 10:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.6, high * 1.6)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        return ", logarithmic"
    if high > low:
        axes.set_ylim(low - 0.1 * (high - low), high + 0.15 * (high - low))
    return ""


def _seconds(axes: Axes, setting: Setting) -> None:
    axes.set_xlabel("simulated seconds" if setting.simulated else "seconds")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _headline(axes: Axes, text: str) -> None:
    """What the vertical axis shows, said above it where it reads without turning the head."""
    axes.set_title(text, loc="left", fontsize="medium")


def _shortened(name: str) -> str:
    return name if len(name) <= LABEL_LETTERS else name[: LABEL_LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"
