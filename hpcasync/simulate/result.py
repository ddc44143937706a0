"""What a simulation has shown: as rows, and as a table for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from rich import box
from rich.console import Group
from rich.table import Table

from hpcasync.bench.rows import Row, Sample, make_rows
from hpcasync.report.table import percent, significant, whole
from hpcasync.simulate.trial import Outcome, Setting

BENCH, SAMPLES = "simulate", "samples_per_second"
_BAR = 40  # characters


def rows(
    case: str, subject: str, setting: Setting, lr: float, outcome: Outcome, batch_size: int | None = None
) -> list[Row]:
    """One row per figure. The tolerance that was not reached has the value None, and says so.

    Args:
        batch_size: samples per step, if known.
    """
    seconds = max(outcome.seconds, 1e-300)
    figures: list[tuple[str, str, float]] = [
        ("learning_rate", "", lr),
        ("gap", "", outcome.gap),
        ("virtual_seconds", "s", outcome.seconds),
        ("steps_per_second", "1/s", outcome.steps / seconds),
        ("updates_per_second", "1/s", outcome.updates / seconds),
        ("updates", "updates", outcome.updates),
        ("wait_share", "", outcome.waited / seconds),
        ("dropped", "contributions", outcome.dropped),
        ("cpu_seconds", "s", outcome.cpu_seconds),
        ("staleness_mean", "updates", mean(outcome.staleness)),
        ("staleness_max", "updates", max(outcome.staleness, default=0)),
        *((f"staleness_{value}", "contributions", times) for value, times in sorted(outcome.staleness.items())),
    ]
    if batch_size is not None:
        figures.insert(0, (SAMPLES, "1/s", outcome.steps / seconds * batch_size))
    samples = [Sample(case, subject, metric, unit, 0, float(value)) for metric, unit, value in figures]
    if setting.until is not None:
        reached = outcome.seconds_to_tolerance
        missed = None if reached is not None else missed_why(setting, outcome)
        samples.insert(0, Sample(case, subject, "seconds_to_tolerance", "s", 0, reached, missed))
    return make_rows(BENCH, samples, {})


def missed_why(setting: Setting, outcome: Outcome) -> str:
    """Why the tolerance was not reached."""
    if outcome.diverged:
        return f"diverged after {significant(outcome.seconds)} s"
    return f"not reached within {significant(setting.seconds)} s, where the gap was {outcome.gap:.3g}"


def mean(histogram: Mapping[int, int]) -> float:
    return sum(value * times for value, times in histogram.items()) / max(sum(histogram.values()), 1)


def table(title: str, setting: Setting, lr: float, outcome: Outcome) -> Group:
    """The same for the terminal, the histogram in classes that double."""
    seconds = max(outcome.seconds, 1e-300)
    figures = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    if setting.until is not None:
        reached = outcome.seconds_to_tolerance
        told = missed_why(setting, outcome) if reached is None else f"{significant(reached)} virtual s"
        figures.add_row(f"to {setting.until:g} of the initial gap", told)
    figures.add_row("step size", f"{lr:.4g}")
    figures.add_row("gap at the end", f"{outcome.gap:.3g}")
    figures.add_row("steps", f"{whole(outcome.steps)} by all ranks, {significant(outcome.steps / seconds)}/s")
    figures.add_row("updates", f"{whole(outcome.updates)}, {significant(outcome.updates / seconds)}/s")
    figures.add_row("dropped", f"{whole(outcome.dropped)} contributions")
    figures.add_row("waiting", f"{percent(outcome.waited / seconds)} of a rank's time")
    figures.add_row("simulated in", f"{significant(outcome.cpu_seconds)} s of processor time")
    worst = whole(max(outcome.staleness, default=0))
    figures.add_row("staleness", f"{significant(mean(outcome.staleness))} updates on average, {worst} at most")
    return Group(figures, _histogram(outcome.staleness))


def _histogram(staleness: Mapping[int, int]) -> Table:
    bars = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(2):
        bars.add_column(justify="right")
    classes: Counter[int] = Counter()
    for value, times in staleness.items():
        classes[value.bit_length()] += times
    total = sum(classes.values())
    for bits in range(max(classes, default=-1) + 1):
        low, high = (1 << bits) >> 1, (1 << bits) - 1
        name = str(low) if low == high else f"{low} to {high}"
        share = classes[bits] / total
        bars.add_row(name, percent(share), "█" * round(_BAR * share))
    return bars


def grid_table(tried: Mapping[float, Outcome], best: float) -> Table:
    """What became of each step size."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("step size", justify="right")
    grid.add_column("virtual s", justify="right")
    grid.add_column("")
    for lr, outcome in tried.items():
        reached = outcome.seconds_to_tolerance
        seconds = f">{significant(outcome.seconds)}" if reached is None else significant(reached)
        note = "best" if lr == best else ""
        if outcome.diverged:
            seconds, note = "", "diverged"
        grid.add_row(f"{lr:.4g}", seconds, note)
    return grid
