"""``--strategy NAME k=v ...``: what is taken, and what is said of the rest."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.errors import UsageError
from hpcasync.sim import simulate
from hpcasync.strategies import STRATEGIES, parse_strategy
from tests.training import Vectors, build


def test_options_have_the_types_of_the_signature():
    choice = parse_strategy(["downpour", "pull=4", "bound=8"])
    assert (choice.name, choice.options) == ("downpour", {"push": 1, "pull": 4, "bound": 8})
    assert parse_strategy(["downpour", "bound=inf"]).options["bound"] == math.inf
    assert parse_strategy(["ssp"]).options["bound"] == 4
    assert parse_strategy(["ssp", "bound=2"]).options["bound"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "unknown strategy 'nothing'; the known ones are sync, "),
        (["nope"], "unknown strategy 'nope'; the known ones are sync, "),
        (["sync", "bound=1"], "strategy sync has no option 'bound'; its options and defaults: none"),
        (["stale", "bond=1"], "strategy stale has no option 'bond'; did you mean bound?"),
        (["stale", "bound"], "strategy stale: 'bound' is not of the form key=value"),
        (["stale", "bound=x"], "strategy stale: bound=x is not an integer"),
        (["stale", "bound=1.5"], "strategy stale: bound=1.5 is not an integer"),
        (["downpour", "bound=x"], "strategy downpour: bound=x is not a number"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(words, message):
    with pytest.raises(UsageError) as error:
        parse_strategy(words)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@given(st.lists(st.text(max_size=12), max_size=3), st.sampled_from([*STRATEGIES, None]))
def test_any_words_give_a_choice_or_a_usage_error(words, name):
    try:
        parse_strategy([*([name] if name else []), *words])
    except UsageError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("stale bound=-1", "bound=-1: it counts reductions in flight, so 0 or more"),
        ("downpour push=0", "push=0: it is a period in steps, so 1 or more"),
        ("downpour pull=-3", "pull=-3: it is a period in steps, so 1 or more"),
        ("downpour bound=-1", "bound=-1: it counts steps, so 0 or more"),
        ("downpour bound=nan", "bound=nan: it counts steps, so 0 or more"),
    ],
)
def test_values_out_of_range_are_refused_by_the_strategy(words, message):
    with pytest.raises(UsageError) as error:
        simulate(lambda world: build(words, world, Vectors((2,))), 2)
    assert str(error.value).startswith(message)


def test_hogwild_says_that_it_needs_one_node():
    with pytest.raises(UsageError, match="hogwild needs all 4 ranks on one node"):
        simulate(lambda world: build("hogwild", world, Vectors((2,))), 4, ranks_per_node=2)


def test_only_bad_values_are_refused():
    assert simulate(lambda world: build("downpour bound=0", world, Vectors((2,))).clock.bound, 1) == [0]
    assert torch.is_tensor(simulate(lambda world: build("sync", world, Vectors((2,))).result(), 1)[0])
