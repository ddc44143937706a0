"""Laws of compute time: their means in closed form, and what parse_law accepts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.errors import UsageError
from hpcasync.laws import Constant, Exponential, Pareto, Slow, Sqrt, Transient, parse_law

DRAWS = 40_000


def draws(law, rank=0):
    rng = np.random.default_rng(0)
    return np.array([law.draw(rng, rank, step) for step in range(DRAWS)])


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("constant", Constant(1.0)),
        ("constant:1.5", Constant(1.5)),
        ("exponential", Exponential(1.0)),
        ("exponential:0.02", Exponential(0.02)),
        ("pareto:2.5", Pareto(2.5)),
        ("transient:0.1:20", Transient(0.1, 20.0)),
        ("sqrt", Sqrt()),
        ("slow:3:4", Slow(3, 4.0)),
    ],
)
def test_every_form_is_parsed(text, law):
    assert parse_law(text) == law


@pytest.mark.parametrize(
    ("text", "mean", "deviation"),
    [
        ("constant:1.5", 1.5, 0.0),
        ("exponential", 1.0, 1.0),
        ("exponential:0.02", 0.02, 0.02),
        ("pareto:3.5", 1.0, 1 / math.sqrt(3.5 * 1.5)),  # variance 1 / (a (a - 2)) at mean 1
        ("transient:0.25:9", 3.0, 8 * math.sqrt(0.25 * 0.75)),
    ],
)
def test_means_and_deviations(text, mean, deviation):
    sample = draws(parse_law(text))
    assert (sample > 0).all()
    assert sample.mean() == pytest.approx(mean, abs=5 * deviation / math.sqrt(DRAWS), rel=1e-12)
    assert sample.std() == pytest.approx(deviation, rel=0.15, abs=1e-12)


def test_the_tail_of_pareto_is_a_power_law():
    sample = draws(Pareto(2.0))  # P(T > t) = (1 / 2t)^2
    assert sample.min() >= 0.5
    for t in (1.0, 2.0, 4.0):
        expected = (0.5 / t) ** 2
        assert (sample > t).mean() == pytest.approx(expected, abs=5 * math.sqrt(expected / DRAWS))


def test_an_exponential_draw_is_above_0_even_where_the_generator_gives_0():
    class Zero:
        def exponential(self):
            return 0.0

    assert Exponential().draw(Zero(), 0, 0) > 0


def test_laws_that_depend_on_the_rank():
    rng = np.random.default_rng(0)
    assert [parse_law("sqrt").draw(rng, rank, 0) for rank in (0, 3, 8)] == [1, 2, 3]
    assert [parse_law("slow:1:4").draw(rng, rank, 0) for rank in (0, 1, 2)] == [1, 4, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gauss", r"law 'gauss' is unknown; known: constant\[:VALUE\], exponential\[:MEAN\], pareto:SHAPE"),
        ("", "law '' is unknown"),
        ("pareto", "write pareto:SHAPE"),
        ("sqrt:2", "write sqrt"),
        ("slow:1", "write slow:RANK:FACTOR"),
        ("constant:1:2", r"write constant\[:VALUE\]"),
        ("constant:fast", "'fast' is not a number"),
        ("slow:1.5:2", "'1.5' is not a whole number"),
        ("constant:0", "0.0 is not a duration: above 0 and finite"),
        ("constant:nan", "nan is not a duration"),
        ("exponential:-1", "-1.0 is not a mean"),
        ("exponential:inf", "inf is not a mean"),
        ("pareto:1", "1.0 is not a shape: above 1"),
        ("transient:1.5:2", "1.5 is not a probability: from 0 to 1"),
        ("transient:0.5:0", "0.0 is not a factor"),
        ("slow:-1:2", "-1 is not a rank: 0 or more"),
        ("slow:1:-2", "-2.0 is not a factor"),
    ],
)
def test_what_is_not_a_law_is_named(text, message):
    with pytest.raises(UsageError, match=message):
        parse_law(text)


NAMES = st.sampled_from(["constant", "exponential", "pareto", "transient", "sqrt", "slow", "Slow", ""])
WORDS = st.one_of(st.text(max_size=8), st.floats().map(str), st.integers().map(str), st.just("9" * 5000))


@given(
    st.one_of(st.text(), st.builds(lambda name, words: ":".join([name, *words]), NAMES, st.lists(WORDS, max_size=3)))
)
def test_any_text_is_a_law_or_a_usage_error(text):
    try:
        law = parse_law(text)
    except UsageError as error:
        assert "law " in str(error) and "\n" not in str(error)
    else:
        assert law.draw(np.random.default_rng(0), 0, 0) > 0
