"""``hpcasync report``: reads run folders, prints a table and writes a page."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hpcasync.errors import UsageError
from hpcasync.report import plot
from hpcasync.report.groups import Setting, settings
from hpcasync.report.html import GENERATOR, page
from hpcasync.report.read import RunRecord, find_runs, printable, read_run
from hpcasync.report.svg import alone
from hpcasync.report.table import console, terminal


def report(paths: Sequence[Path], output: Path | None = None, figures: Path | None = None) -> Path:
    """Prints the table of the runs in `paths` and writes their page; returns the page's path.

    `paths` are run folders or folders of runs; `output` is by default report.html in the first of them. The page's
    plots also go to the folder `figures`, if given, as files such as evaluations-1.svg; one for which there are no data
    is named on stderr. A run whose
    run.json cannot be used is named on stderr and in the page, and the others are reported. Raises UsageError when
    there is no run to report, or when `output` is a file that is not a report.
    """
    folders = find_runs(paths)
    target = output if output is not None else paths[0] / "report.html"
    _check_replaceable(target)
    runs, skipped = _read(folders)
    for line in skipped:
        print(f"hpcasync: skipped {line}", file=sys.stderr)
    if not runs:
        raise UsageError(f"none of the {len(folders)} runs found could be read")
    compared = settings(runs)
    screen = console()
    for setting in compared:
        screen.print(terminal(setting, screen))
    _write(target, page(compared, skipped))
    if figures is not None:
        _write_figures(figures, compared)
    return target


def _write_figures(folder: Path, compared: Sequence[Setting]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, setting in enumerate(compared, start=1):
        for draw in (plot.evaluations, plot.losses, plot.throughput, plot.staleness):
            file, svg = folder / f"{draw.__name__}-{number}.svg", draw(setting)
            if svg:
                file.write_text(alone(svg), encoding="utf-8")
            else:
                print(f"hpcasync: not written: {file}: no data in {setting.title}", file=sys.stderr)


def _read(folders: Sequence[Path]) -> tuple[list[RunRecord], list[str]]:
    runs, skipped = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except UsageError as error:
            skipped.append(" ".join(printable(str(error)).split()))
    return runs, skipped


def _check_replaceable(target: Path) -> None:
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is not a folder; the page cannot be written there")
    if target.is_dir():
        raise UsageError(f"{target} is a folder; give the name of a file for the page")
    if target.exists() and GENERATOR.encode() not in target.read_bytes()[:1000]:
        raise UsageError(f"{target} exists and is not a report; give another name for the page")


def _write(target: Path, text: str) -> None:
    """Replaces the page at once, so that a reader never sees half of one."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(target)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({error.strerror})") from error
