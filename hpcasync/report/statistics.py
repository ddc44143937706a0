"""What a set of runs says about one metric. The unit of repetition is a run, never a step."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, order=True)
class Value:
    """One run's value of a metric. `censored`: the true value is larger, the run ended before it was seen."""

    value: float
    censored: bool = False


@dataclass(frozen=True)
class Spread:
    """Median and range over runs. With one run median, low and high are that run: a range of nothing."""

    values: tuple[Value, ...]
    median: Value
    low: Value
    high: Value

    @property
    def n(self) -> int:
        return len(self.values)


def spread(values: Sequence[Value]) -> Spread | None:
    """The spread of `values`; None when there are none.

    A censored value is known from below only. The median is computed once with the times at which runs were cut off
    and once with infinity in their place. Where both agree it is known; otherwise the first is a lower bound, and the
    median is marked as censored.
    """
    if not values:
        return None
    lower = statistics.median(v.value for v in values)
    upper = statistics.median(math.inf if v.censored else v.value for v in values)
    return Spread(
        values=tuple(values),
        median=Value(lower, censored=lower != upper),
        low=min(values, key=lambda v: v.value),
        high=max(values, key=lambda v: (v.censored, v.value)),
    )


@dataclass(frozen=True)
class Ratio:
    """Median over median; `low` and `high` are the extreme ratios, given where both sides have at least two runs."""

    value: float
    low: float | None
    high: float | None


def ratio(spread: Spread | None, baseline: Spread | None) -> Ratio | None:
    """`spread` over `baseline`; None where either is missing, censored or the baseline is not above zero."""
    if spread is None or baseline is None or baseline.low.value <= 0:
        return None
    if any(v.censored for v in spread.values + baseline.values):
        return None
    value = spread.median.value / baseline.median.value
    if min(spread.n, baseline.n) < 2:
        return Ratio(value, None, None)
    return Ratio(value, spread.low.value / baseline.high.value, spread.high.value / baseline.low.value)


def decimate(length: int, limit: int) -> NDArray[np.intp]:
    """At most `limit` evenly spaced indices below `length`, first and last included."""
    if length <= limit:
        return np.arange(length)
    return np.linspace(0, length - 1, limit).round().astype(np.intp)


def moving_median(values: NDArray[np.float64], window: int, centres: NDArray[np.intp]) -> NDArray[np.float64]:
    """(centres,) the median of the `window` values around each centre, fewer at the ends.

    Computed at the centres only: a plot shows two thousand points of a curve, whatever its length.
    """
    half = window // 2
    medians = [np.median(values[max(0, centre - half) : centre + half + 1]) for centre in centres]
    return np.array(medians, dtype=np.float64)
