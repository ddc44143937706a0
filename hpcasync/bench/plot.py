"""The plot of a bench: what training subjects keep of the speed without exchange, or our verbs against others'."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from hpcasync.bench import verbs
from hpcasync.bench.options import PEERS
from hpcasync.bench.rows import RATIO, Row
from hpcasync.bench.training import LOCKSTEP, METRIC, NONE
from hpcasync.report.style import LIGHT
from hpcasync.report.svg import INK, figure, save
from hpcasync.report.table import significant

MARKERS = "osD^v"
OTHERS = (LOCKSTEP, *PEERS["horovod"], *PEERS["ddp"])  # grey: not ours


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes ``path``.svg and ``path``.png, where there is something to draw."""
    if any(row.metric == METRIC for row in rows):
        _shares(rows, path)
    elif any(row.subject == verbs.OURS and row.metric.startswith(RATIO) for row in rows):
        _verbs(rows, path)


def _shares(rows: Sequence[Row], path: Path) -> None:
    """A panel per case, a bar per subject: its samples per second over those of the same ranks without exchange."""
    subjects = [name for name in dict.fromkeys(row.subject for row in rows if row.metric == METRIC) if name != NONE]
    panels = {case: _cells(rows, case, subjects) for case in dict.fromkeys(row.case for row in rows)}
    count = max(len(cells) for cells in panels.values())
    with figure(len(panels), 0.9 + len(panels) * (0.6 + 0.3 * count)) as (drawn, axes):
        for (case, cells), panel in zip(panels.items(), axes, strict=True):
            for place, (subject, rate, share) in enumerate(cells):
                shade = LIGHT[0] if subject in OTHERS else LIGHT[1 + subjects.index(subject) % (len(LIGHT) - 1)]
                _bar(panel, place, shade, share)
                said = f"  {significant(rate.value)}" if rate.value is not None else "  failed"
                end = max(share.runs) if share else 0.0
                panel.text(end, place, said, color=INK, va="center_baseline", fontsize="small")
            panel.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            panel.set_yticks(range(len(cells)), [subject for subject, _, _ in cells], fontsize="small")
            panel.set_ylim(count - 0.4, -0.6)
            panel.tick_params(axis="y", length=0)
            panel.spines.left.set_visible(False)
            panel.set_title(case, loc="left", fontsize="medium")
        widest = max((max(share.runs) for cells in panels.values() for _, _, share in cells if share), default=1.0)
        axes[-1].set_xlim(0, max(1.0, widest) * 1.18)
        axes[-1].xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        axes[-1].xaxis.set_major_formatter(PercentFormatter(1.0))
        axes[-1].set_xlabel("share of the samples/s without exchange")
        save(drawn, path)


def _cells(rows: Sequence[Row], case: str, subjects: Sequence[str]) -> list[tuple[str, Row, Row | None]]:
    """(subject, its rate, its share of the rate without exchange) of the subjects that this case has."""
    found = {(row.subject, row.metric): row for row in rows if row.case == case}
    return [
        (subject, found[subject, METRIC], found.get((subject, RATIO + NONE)))
        for subject in subjects
        if (subject, METRIC) in found
    ]


def _bar(axes: Axes, place: int, shade: str, share: Row | None) -> None:
    if share is None or share.value is None:
        return
    axes.barh(place, share.value, height=0.62, color=shade, alpha=0.9)
    if len(share.runs) > 1:
        axes.plot(share.runs, [place] * len(share.runs), "o", color=INK, markersize=2.5)


def _verbs(rows: Sequence[Row], path: Path) -> None:
    """Two panels: bandwidth of push and pull over a copy's, time of allreduce over MPI's and the peers'."""
    ours = [row for row in rows if row.subject == verbs.OURS and row.metric.startswith(RATIO)]
    groups = [
        ("bandwidth, ours over another's: right is better", [row for row in ours if row.metric == RATIO + verbs.COPY]),
        ("time, ours over another's: left is better", [row for row in ours if row.metric != RATIO + verbs.COPY]),
    ]
    groups = [(title, members) for title, members in groups if members]
    count = max(len({row.case for row in members}) for _, members in groups)
    metrics = list(dict.fromkeys(row.metric for row in ours))
    with figure(len(groups), 1.0 + len(groups) * (0.7 + 0.3 * count)) as (drawn, axes):
        for (title, members), panel in zip(groups, axes, strict=True):
            cases = list(dict.fromkeys(row.case for row in members))
            for metric in dict.fromkeys(row.metric for row in members):
                index = metrics.index(metric)
                points = [(row.value, cases.index(row.case)) for row in members if row.metric == metric]
                panel.plot(
                    *zip(*points, strict=True),
                    MARKERS[index % len(MARKERS)],
                    color=LIGHT[1 + index],
                    label=metric.removeprefix(RATIO),
                    markersize=6,
                )
            panel.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            panel.set_yticks(range(len(cases)), cases, fontsize="small")
            panel.set_ylim(len(cases) - 0.4, -0.6)
            panel.set_xscale("log")
            panel.set_title(title, loc="left", fontsize="medium")
            panel.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
        axes[-1].xaxis.set_major_locator(LogLocator(10))
        axes[-1].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes[-1].xaxis.set_minor_locator(NullLocator())
        save(drawn, path)
