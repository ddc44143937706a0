"""The comparison as a plot: a line per strategy, a mark per disturbance, time on a logarithmic axis.

A mark is hollow where the seeds disagree."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from hpcasync.bench.rows import Row
from hpcasync.report.svg import INK, alone, figure, render, series
from hpcasync.simulate.family_table import DOUBTFUL, cases, lines, spread

SHOWN = 3  # the first cases: without a straggler, with a slow rank, with jitter
MARKS = (("o", 0), ("D", 2), ("^", 1))  # marker and series colour of each
ROW_INCHES = 0.2


def draw(rows: Sequence[Row]) -> str:
    """An SVG file's text."""
    shown, families = cases(rows)[:SHOWN], lines(rows)
    count = sum(1 + len(members) for members in families.values())
    with figure(1, 1.3 + ROW_INCHES * count) as (drawn, (axes,)):
        place, names = 0, []
        for family, members in families.items():
            axes.text(0.0, place, family, transform=axes.get_yaxis_transform(), fontsize="small", fontweight="bold",
                      ha="left", va="center_baseline")  # fmt: skip
            place += 1
            for words, cells in members.items():
                _strategy(axes, place, [cells.get(case) for case in shown])
                names.append((place, words.split()[0]))
                place += 1
        axes.set_yticks([each for each, _ in names], [name for _, name in names], fontsize="small")
        axes.set_ylim(place - 0.4, -0.8)
        _finish(axes, shown)
        return alone(render(drawn, "compare", "virtual seconds to one loss, by strategy and disturbance"))


def _strategy(axes: Axes, place: int, cells: Sequence[Row | None]) -> None:
    values = [cell.value for cell in cells if cell is not None and cell.value is not None]
    if not values:
        return
    axes.plot([min(values), max(values)], [place, place], color=INK, linewidth=0.8, alpha=0.35, zorder=1)
    for cell, (mark, shade) in zip(cells, MARKS, strict=False):
        if cell is not None and cell.value is not None:
            face = "white" if spread(cell) > DOUBTFUL else series(shade)
            axes.plot(cell.value, place, mark, color=series(shade), markerfacecolor=face, markersize=5.5, zorder=2)
    if any(cell is not None and cell.value is None for cell in cells):
        axes.plot(1.01, place, ">", color=series(2), markersize=4, transform=axes.get_yaxis_transform(), clip_on=False)


def _finish(axes: Axes, shown: Sequence[str]) -> None:
    for name, (mark, shade) in zip(shown, MARKS, strict=False):
        axes.plot([], [], mark, color=series(shade), markersize=6, label=name)
    axes.legend(frameon=False, ncols=len(shown), loc="lower left", bbox_to_anchor=(-0.2, 1.0), fontsize="small",
                handletextpad=0.1, columnspacing=1.2)  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines.left.set_visible(False)
    axes.set_xlabel("virtual seconds to 1 % of the initial gap")
