"""The comparison as a table: a line per strategy, a column per case."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table

from hpcasync.bench.rows import Row
from hpcasync.report.table import ABSENT, significant
from hpcasync.strategies import FAMILIES

DOUBTFUL = 2.0  # times as long for the slowest seed as for the fastest: the median says little
BENCH, METRIC, RATE = "compare", "seconds_to_tolerance", "learning_rate_times_smoothness"


def cases(rows: Sequence[Row]) -> list[str]:
    """In the order in which they come first."""
    return list(dict.fromkeys(row.case for row in rows))


def lines(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Row]]]:
    """{family: {strategy with its options: {case: its seconds to the tolerance}}}, in the order of the table."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.metric == METRIC:
            found.setdefault(row.subject, {})[row.case] = row
    grouped = {
        family.name: {words: cells for words, cells in found.items() if words.split()[0] in family.entries}
        for family in FAMILIES
    }
    return {name: members for name, members in grouped.items() if members}


def spread(row: Row) -> float:
    """The slowest seed's time over the fastest's; infinite where a seed missed the tolerance."""
    return math.inf if row.error or not row.runs else max(row.runs) / min(row.runs)


def told(row: Row | None) -> str:
    """The median and the spread; "diverged" or "never" where no seed reached the tolerance, ~ where some missed it."""
    if row is None:
        return ABSENT
    if row.value is None:
        return "diverged" if "diverged" in (row.error or "") else "never"
    if row.error:
        return f"~{significant(row.value)}"
    mark = "!" if spread(row) > DOUBTFUL else ""
    return f"{significant(row.value)} ({spread(row):.1f}{mark})"


def terminal(rows: Sequence[Row]) -> Table:
    """For rich, the best of a column bold."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="virtual seconds to the tolerance", title_justify="left")
    table.add_column("strategy")
    columns, best = cases(rows), _best(rows)
    for case in columns:
        table.add_column(case, justify="right")
    for family, members in lines(rows).items():
        table.add_section()
        table.add_row(f"[dim]{family}[/dim]")
        for words, cells in members.items():
            values = [told(cells.get(case)) for case in columns]
            marked = [
                f"[bold]{value}[/bold]" if cells.get(case) is not None and cells[case] is best.get(case) else value
                for case, value in zip(columns, values, strict=True)
            ]
            table.add_row(words, *marked)
    return table


def markdown(rows: Sequence[Row]) -> str:
    """The same as a Markdown table, with the families in a column of their own."""
    columns, best = cases(rows), _best(rows)
    titles, rule = ["family", "strategy", *columns], ["---", "---", *["--:" for _ in columns]]
    told_lines = [titles, rule]
    for family, members in lines(rows).items():
        for words, cells in members.items():
            values = [told(cells.get(case)) for case in columns]
            marked = [
                f"**{value}**" if case in best and cells.get(case) is best[case] else value
                for case, value in zip(columns, values, strict=True)
            ]
            told_lines.append([family, f"`{words}`", *marked])
    return "".join(f"| {' | '.join(line)} |\n" for line in told_lines)


def _best(rows: Sequence[Row]) -> dict[str, Row]:
    """{case: the row with the smallest median, of those that all seeds reached}."""
    best: dict[str, Row] = {}
    for row in rows:
        if row.metric == METRIC and row.value is not None and not row.error:
            champion = best.get(row.case)
            if champion is None or champion.value is None or row.value < champion.value:
                best[row.case] = row
    return best
