"""The table of a bench: one line per case and subject, the ratios beside what they are ratios of."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from hpcasync.bench.rows import RATIO, Row
from hpcasync.report.table import ABSENT, significant

LEFT = ("case", "subject", "metric", "unit", "range")


def lines(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """(titles, lines of cells)."""
    compared = {row.metric for row in rows if row.metric.startswith(RATIO)}
    references = [RATIO + name for name in dict.fromkeys(row.subject for row in rows) if RATIO + name in compared]
    found = {(row.case, row.subject, row.metric): row for row in rows}
    metrics = dict.fromkeys((row.case, row.metric) for row in rows if row.metric not in references)
    several = len(metrics) > len({case for case, _ in metrics})  # metrics in a case: they are named
    titles = ["case", "subject", *(["metric"] if several else []), "median", "unit", "range"]
    titles += [f"÷ {metric.removeprefix(RATIO)}" for metric in references]
    cells = []
    for row in rows:
        if row.metric in references:
            continue
        ratios = [found.get((row.case, row.subject, metric)) for metric in references]
        named = [row.metric] if several else []
        cells.append([row.case, row.subject, *named, *_figures(row), *map(_median, ratios)])
    return titles, cells


def _figures(row: Row) -> list[str]:
    if row.value is None:
        return [ABSENT, "", f"failed: {row.error}"]
    low, high = min(row.runs), max(row.runs)
    told = f"{significant(low)} to {significant(high)}" if len(row.runs) > 1 else ""
    if row.error is not None:
        told = f"{told} failed: {row.error}".strip()
    return [significant(row.value), "samples/s" if row.unit == "1/s" else row.unit, told]


def _median(row: Row | None) -> str:
    return ABSENT if row is None or row.value is None else significant(row.value)


def terminal(rows: Sequence[Row]) -> Table:
    """For rich; a case is named on its first line only."""
    titles, cells = lines(rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        left = title in LEFT
        table.add_column(title, justify="left" if left else "right", overflow="fold", no_wrap=not left)
    previous = ""
    for case, *rest in cells:
        if previous and case != previous:
            table.add_section()
        table.add_row(*map(Text, [case if case != previous else "", *rest]))
        previous = case
    return table


def markdown(rows: Sequence[Row]) -> str:
    """The same as a Markdown table."""
    titles, cells = lines(rows)
    rule = ["---" if title in LEFT else "--:" for title in titles]
    told = [titles, rule, *([cell.replace("|", "\\|") for cell in line] for line in cells)]
    return "".join(f"| {' | '.join(line)} |\n" for line in told)
