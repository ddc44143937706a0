"""The table of a report: one row per group of runs. The same cells go to the terminal and to the page."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpcasync.report.groups import Group, Setting
from hpcasync.report.read import STATUSES
from hpcasync.report.statistics import Ratio, Spread, Value

PLAIN_COLUMNS = 200  # where output is not a terminal nobody reads it at 80 columns
ABSENT = "\N{EN DASH}"  # not measured


@dataclass(frozen=True)
class Cell:
    """A figure, and below it the range over runs, empty where they do not differ."""

    figure: str
    range: str = ""


@dataclass(frozen=True)
class Column:
    title: str
    meaning: str
    cell: Callable[[Setting, Group], Cell]


def console() -> Console:
    """Standard output, for tables."""
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_COLUMNS)


def decimals(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def significant(value: float) -> str:
    """Three significant digits, thousands grouped by a comma, no exponent below 10^15."""
    if value == 0 or not 1e-4 <= abs(value) < 1e15:
        return f"{value:.3g}"
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    text = f"{value:#.3g}"
    return text.removesuffix(".")


def percent(value: float) -> str:
    return f"{100 * value:.0f} %" if abs(value) >= 0.0995 or value == 0 else f"{100 * value:.1f} %"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def bounded(value: Value, form: Callable[[float], str]) -> str:
    """A censored value is shown as larger than the time that was given."""
    return f">{form(value.value)}" if value.censored else form(value.value)


def cell(spread: Spread | None, form: Callable[[float], str]) -> Cell:
    if spread is None:
        return Cell(ABSENT)
    low, high = bounded(spread.low, form), bounded(spread.high, form)
    return Cell(bounded(spread.median, form), f"{low} to {high}" if low != high else "")


def ratio_cell(ratio: Ratio | None) -> Cell:
    if ratio is None:
        return Cell(ABSENT)
    if ratio.low is None or ratio.high is None:
        return Cell(significant(ratio.value))
    return Cell(significant(ratio.value), f"{significant(ratio.low)} to {significant(ratio.high)}")


def columns(setting: Setting) -> list[Column]:
    """The columns after the strategy's name, in order."""

    def measured(title: str, meaning: str, metric: str, form: Callable[[float], str]) -> Column:
        return Column(title, meaning, lambda _, group: cell(group.spread(metric), form))

    against = setting.baseline.short if setting.baseline else "a baseline"
    clock = "simulated seconds" if setting.simulated else "seconds"
    return [
        Column("runs", "finished runs; running and failed ones are named, never counted", _runs),
        measured(setting.metric, f"{setting.metric} at the end of the run", setting.metric, decimals),
        measured(
            "seconds to target",
            f"{clock} until the target was reached; > marks runs that ended before",
            "seconds_to_target",
            significant,
        ),
        measured("samples/s", f"samples per {clock.removesuffix('s')}, all ranks", "samples_per_second", significant),
        Column(f"ratio to {against}", f"samples/s divided by that of {against}", _ratio),
        measured(
            "ideal share",
            "samples/s divided by the sum of what the ranks would reach if they only computed",
            "ideal_share",
            percent,
        ),
        measured("staleness mean", "updates made since the parameters were read, mean", "staleness_mean", decimals2),
        Column("staleness max", "largest staleness of all runs", _largest),
        measured("wait share", "share of the time in which ranks waited for others", "wait_share", percent),
        measured("steps", "steps of all ranks", "steps", whole),
    ]


def decimals2(value: float) -> str:
    return f"{value:.2f}"


def _runs(_: Setting, group: Group) -> Cell:
    counts = [(status, sum(run.status == status for run in group.unfinished)) for status in STATUSES]
    return Cell(str(len(group.finished)), ", ".join(f"{count} {status}" for status, count in counts if count))


def _ratio(setting: Setting, group: Group) -> Cell:
    return Cell("1") if group is setting.baseline and group.finished else ratio_cell(setting.ratio(group))


def _largest(_: Setting, group: Group) -> Cell:
    largest = group.spread("staleness_max")
    return Cell(whole(largest.high.value)) if largest else Cell(ABSENT)


def terminal(setting: Setting, console: Console) -> Table:
    """For rich; texts from files are never read as markup.

    Where the terminal is too narrow, columns are left out from the last on, rather than figures cut; strategy, metric,
    runs, seconds to target and samples/s stay in any case. The page has them all.
    """
    shown = columns(setting)
    table = _table(setting, shown)
    while len(shown) > 4 and console.measure(table, options=console.options.update(width=1000)).minimum > console.width:
        table = _table(setting, shown := shown[:-1])
    return table


def _table(setting: Setting, shown: Sequence[Column]) -> Table:
    table = Table(title=Text(setting.title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=0)
    table.add_column("strategy", overflow="fold", min_width=14)
    rows: list[list[str]] = [[group.label] for group in setting.groups]
    for column in shown:
        title = column.title.replace(" ", "\n")
        cells = [column.cell(setting, group) for group in setting.groups]
        figures = [f"{cell.figure}\n{cell.range}" if cell.range else cell.figure for cell in cells]
        width = max(cell_len(line) for text in (title, *figures) for line in text.split("\n"))
        table.add_column(Text(title), justify="right", no_wrap=True, min_width=width)
        for row, figure in zip(rows, figures, strict=True):
            row.append(figure)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
