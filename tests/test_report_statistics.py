"""The report's statistics: medians, ranges, ratios, and how many digits of them are shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.report.plot import CURVE_POINTS
from hpcasync.report.statistics import Ratio, Value, decimate, moving_median, ratio, spread
from hpcasync.report.table import percent, significant


def test_spread_is_the_median_and_the_range() -> None:
    result = spread([Value(3.0), Value(1.0), Value(2.0)])
    assert result is not None
    assert (result.n, result.median, result.low, result.high) == (3, Value(2.0), Value(1.0), Value(3.0))
    assert spread([]) is None


@pytest.mark.parametrize(
    ("values", "median"),
    [
        ([Value(9.0, True)], Value(9.0, True)),
        ([Value(1.0), Value(2.0), Value(9.0, True)], Value(2.0)),  # the censored one is above the median anyway
        ([Value(1.0), Value(9.0, True), Value(9.0, True)], Value(9.0, True)),
        ([Value(1.0), Value(9.0, True)], Value(5.0, True)),  # at least (1 + 9) / 2
        ([Value(10.0), Value(20.0), Value(5.0, True)], Value(10.0, True)),  # between 10 and 20
    ],
)
def test_median_with_censored_runs_is_exact_or_a_lower_bound(values: list[Value], median: Value) -> None:
    result = spread(values)
    assert result is not None and result.median == median


@given(st.lists(st.tuples(st.floats(0.1, 100), st.booleans(), st.floats(0, 100)), min_size=1))
def test_censored_median_never_exceeds_the_true_one(runs: list[tuple[float, bool, float]]) -> None:
    result = spread([Value(seen, censored) for seen, censored, _ in runs])
    truth = float(np.median([seen + censored * later for seen, censored, later in runs]))
    assert result is not None
    if result.median.censored:
        assert result.median.value <= truth + 1e-9
    else:
        assert result.median.value == pytest.approx(truth)


def test_ratio_gives_a_range_only_where_both_sides_repeat() -> None:
    one, two = spread([Value(6.0)]), spread([Value(2.0), Value(4.0)])
    assert ratio(one, two) == Ratio(2.0, None, None)
    assert ratio(two, one) == Ratio(0.5, None, None)
    assert ratio(two, two) == Ratio(1.0, 0.5, 2.0)
    assert ratio(one, None) is None
    assert ratio(one, spread([Value(0.0)])) is None
    assert ratio(one, spread([Value(1.0, True)])) is None


def test_decimate_keeps_both_ends_and_the_limit() -> None:
    assert decimate(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert decimate(101, 3).tolist() == [0, 50, 100]
    assert len(decimate(10**6, CURVE_POINTS)) == CURVE_POINTS


def test_moving_median_takes_fewer_values_at_the_ends() -> None:
    values = np.array([5.0, 1.0, 2.0, 9.0, 3.0])
    assert moving_median(values, 3, np.arange(5)).tolist() == [3.0, 2.0, 2.0, 3.0, 6.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3.2, "3.20"), (0.031, "0.0310"), (12.34, "12.3"), (999.4, "999"), (999.6, "1,000"), (1604.2, "1,604")],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_percent() -> None:
    assert [percent(v) for v in (0, 0.031, 0.31, 0.996)] == ["0 %", "3.1 %", "31 %", "100 %"]
