"""From what was measured to rows: medians over the repeats, and ratios within a repeat. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

RATIO = "ratio_to_"


@dataclass(frozen=True)
class Sample:
    """One value, of one repeat. ``value`` is None and ``error`` says why where there is none."""

    case: str
    subject: str
    metric: str
    unit: str
    repeat: int
    value: float | None
    error: str | None = None


@dataclass(frozen=True)
class Row:
    """The median of ``runs``, one value per repeat; None where every repeat has failed."""

    bench: str
    case: str
    subject: str
    metric: str
    value: float | None
    unit: str
    runs: tuple[float, ...]
    error: str | None = None

    def entry(self) -> dict[str, Any]:
        """As JSON; a row without a failure has no ``error``."""
        entry = asdict(self) | {"runs": list(self.runs)}
        if self.error is None:
            del entry["error"]
        return entry


def make_rows(bench: str, samples: Iterable[Sample], references: Mapping[str, str]) -> list[Row]:
    """One row per case, subject and metric, in the order in which they come first; the ratios follow their metric.

    Args:
        references: {subject: metric}: whatever has this metric in the same case is also given as a ratio to it,
            repeat by repeat, for what disturbs the machine for minutes disturbs both.
    """
    series: dict[tuple[str, str, str], dict[int, float]] = {}
    units: dict[tuple[str, str, str], str] = {}
    errors: dict[tuple[str, str, str], list[str]] = {}
    for sample in samples:
        key = (sample.case, sample.subject, sample.metric)
        units[key] = sample.unit
        values = series.setdefault(key, {})
        if sample.value is None:
            errors.setdefault(key, []).append(sample.error or "no result")
        else:
            values[sample.repeat] = sample.value
    cases = list(dict.fromkeys(case for case, _, _ in series))
    rows = []
    for key in sorted(series, key=lambda key: cases.index(key[0])):
        case, subject, metric = key
        rows.append(_row(bench, key, units[key], list(series[key].values()), _told(errors.get(key, []))))
        for reference, compared in references.items():
            base = series.get((case, reference, metric))
            if metric == compared and reference != subject and base:
                runs = ratios(series[key], base)
                rows += [_row(bench, (case, subject, RATIO + reference), "", runs, None)] if runs else []
    return rows


def ratios(values: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """Value over base in every repeat that has both and a base above 0."""
    return [values[repeat] / base[repeat] for repeat in sorted(values) if base.get(repeat, 0) > 0]


def _row(bench: str, key: tuple[str, str, str], unit: str, runs: Sequence[float], error: str | None) -> Row:
    case, subject, metric = key
    return Row(bench, case, subject, metric, statistics.median(runs) if runs else None, unit, tuple(runs), error)


def _told(errors: Sequence[str]) -> str | None:
    if not errors:
        return None
    return errors[0] if len(errors) == 1 else f"{len(errors)} times, first: {errors[0]}"
