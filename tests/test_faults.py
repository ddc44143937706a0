"""Injected stragglers: how long is slept, and what is handed on."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.errors import UsageError
from hpcasync.faults import Faults, Pace, parse_slow
from hpcasync.laws import Constant, Exponential
from hpcasync.sim import simulate
from hpcasync.world import World


class Recorder:
    """Stands for a World of four ranks: keeps what it is told."""

    rank, size, waited = 3, 4, 0.5

    def __init__(self) -> None:
        self.told: list[float] = []

    def computed(self, seconds: float) -> None:
        self.told.append(seconds)

    def shrink(self) -> Recorder:
        survivors = Recorder()
        survivors.rank, survivors.size = 1, 2
        return survivors


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    return naps


@given(st.dictionaries(st.integers(0, 99), st.floats(1, 1000), max_size=5), st.booleans())
def test_slow_ranks_are_read_back(slow: dict[int, float], together: bool) -> None:
    words = [f"{rank}:{factor!r}" for rank, factor in slow.items()]
    assert parse_slow([",".join(words)] if together and words else words) == slow


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("3", "write RANK:FACTOR"),
        ("", "write RANK:FACTOR"),
        ("-1:4", "write RANK:FACTOR"),
        ("x:4", "write RANK:FACTOR"),
        ("3:x", "'x' is not a number"),
        ("3:0.5", "it must be 1 or more"),
        ("3:nan", "it must be 1 or more"),
        ("3:inf", "it must be 1 or more"),
        ("3:4,3:5", "rank 3 is given twice"),
    ],
)
def test_a_bad_slow_rank_is_named(word: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse_slow([word])


@given(st.text())
def test_free_text_is_read_or_refused(word: str) -> None:
    try:
        slow = parse_slow([word])
    except UsageError as error:
        assert "--slow" in str(error)
    else:
        assert all(rank >= 0 and factor >= 1 for rank, factor in slow.items())


@pytest.mark.parametrize(
    ("slow", "jitter", "step_seconds", "whole"),
    [
        ({3: 4.0}, None, 0.0, 0.4),  # 4 times the computation
        ({0: 4.0}, None, 0.0, 0.1),  # another rank is slow
        ({}, None, 1.0, 1.0),  # padded
        ({}, None, 0.05, 0.1),  # longer than the padding already
        ({3: 4.0}, None, 1.0, 4.0),
        ({3: 4.0}, Constant(0.5), 1.0, 2.0),
        ({}, Constant(0.5), 0.0, 0.1),  # no step is shorter than its computation
    ],
)
def test_what_a_step_lacks_is_slept(
    slept: list[float], slow: dict[int, float], jitter: Any, step_seconds: float, whole: float
) -> None:
    world = Recorder()
    Faults(world, slow, jitter, step_seconds).computed(0.1)  # type: ignore[arg-type]
    assert sum(slept) == pytest.approx(whole - 0.1)
    assert world.told == [pytest.approx(whole)]


def test_everything_else_is_the_inner_worlds() -> None:
    faults = Faults(Recorder(), {3: 4.0})  # type: ignore[arg-type]
    assert (faults.rank, faults.size, faults.waited) == (3, 4, 0.5)


def test_a_rank_stays_slow_when_renumbered(slept: list[float]) -> None:
    faults = Faults(Recorder(), {3: 4.0})  # type: ignore[arg-type]
    survivors = faults.shrink()
    assert (survivors.rank, survivors.size) == (1, 2)
    survivors.computed(1.0)
    assert slept == [3.0]


def test_a_slow_rank_outside_the_world_is_named() -> None:
    with pytest.raises(UsageError, match=r"--slow 4:2: the ranks are 0 to 3"):
        Faults(Recorder(), {4: 2.0})  # type: ignore[arg-type]


def test_the_same_options_are_a_law_for_simulated_ranks() -> None:
    def main(world: World) -> float:
        for _ in range(5):
            world.computed(0.0)
        return world.now()

    assert simulate(main, 3, compute=Pace(2.0, {1: 3.0}, Constant(0.5))) == pytest.approx([5.0, 15.0, 5.0])


def test_jitter_follows_its_seed(slept: list[float]) -> None:
    def naps(seed: int) -> list[float]:
        slept.clear()
        faults = Faults(Recorder(), {}, Exponential(), 1.0, seed)  # type: ignore[arg-type]
        for _ in range(5):
            faults.computed(0.0)
        return list(slept)

    assert naps(0) == naps(0) != naps(1)
