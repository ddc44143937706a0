"""Following files that are being written, and how fast ranks are by what they have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.report.tail import Tail
from hpcasync.status.ranks import LATELY, Pace, Paces, stragglers
from tests.status_runs import make_run

# Following files


def test_a_tail_gives_every_line_once_and_waits_for_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    tail = Tail(path)
    assert tail.lines() == []
    path.write_bytes(b"one\ntw")
    assert tail.lines() == [b"one"]
    with path.open("ab") as file:
        file.write(b"o\nthree\n")
    assert tail.lines() == [b"two", b"three"]
    assert tail.lines() == []
    path.write_bytes(b"one\n")  # as a run that is resumed does
    assert tail.lines() == [b"one"]


@given(st.lists(st.binary(max_size=20)), st.integers(1, 9))
def test_what_comes_in_pieces_is_read_as_whole(tmp_path_factory: Any, lines: list[bytes], size: int) -> None:
    path = tmp_path_factory.mktemp("tail") / "lines"
    content = b"\n".join(lines)
    tail, found = Tail(path), []
    for i in range(0, len(content), size):
        with path.open("ab") as file:
            file.write(content[i : i + size])
        found += tail.lines()
    assert found == content.split(b"\n")[:-1]


def test_the_end_of_a_long_file_is_enough_for_a_pace(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", ranks=2, steps=2000)
    paces = Paces(folder)
    paces.look()
    assert len(Tail(folder / "metrics.rank1.jsonl", 1 << 15).lines()) < 2000
    assert [paces.ranks[rank].steps for rank in (0, 1)] == [2000, 2000]
    assert paces.ranks[1].samples_per_second == pytest.approx(8 / 0.15)
    assert [each.values for each in paces.evaluations] == [{"accuracy": 0.5}]


# Paces


def test_a_pace_by_its_closed_form(tmp_path: Path) -> None:
    paces = Paces(make_run(tmp_path / "run"))
    paces.look()
    fast, slow = paces.ranks[1], paces.ranks[3]
    assert fast.samples_per_second == pytest.approx(8 / 0.15)
    assert slow.samples_per_second == pytest.approx(8 / 0.45)
    assert fast.wait_share == pytest.approx(0.05 / 0.15)
    assert (fast.busy_seconds, slow.busy_seconds) == (pytest.approx(0.1), pytest.approx(0.4))
    assert (fast.staleness, slow.staleness) == (1.0, 3.0)
    assert stragglers(list(paces.ranks.values())) == {3: pytest.approx(4.0)}


def test_whoever_holds_all_up_is_found_where_all_are_equally_fast() -> None:
    """Under sync every rank makes as many steps; the straggler is the one that does not wait."""
    paces = [Pace(rank) for rank in range(3)]
    for pace in paces:
        for step in range(1, 9):
            waited = 0.0 if pace.rank == 2 else 0.6 * step
            pace.add({"step": step, "seconds": 0.9 * step, "samples": step, "loss": 1, "waited": waited})
    assert len({pace.samples_per_second for pace in paces}) == 1
    assert stragglers(paces) == {2: pytest.approx(3.0)}


@given(st.lists(st.floats(0.01, 100.0), min_size=2, max_size=8))
def test_only_who_takes_much_longer_than_the_median_is_a_straggler(step_seconds: list[float]) -> None:
    paces = []
    for rank, seconds in enumerate(step_seconds):
        pace = Pace(rank)
        for step in range(1, 4):
            pace.add({"step": step, "seconds": seconds * step, "loss": 0.0, "samples": step, "waited": 0.0})
        paces.append(pace)
    found = stragglers(paces)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert all(factor > 1.5 for factor in found.values())
    assert len(found) <= len(paces) / 2


def test_a_resumed_run_is_judged_by_what_came_after() -> None:
    pace = Pace(0)
    for step in (*range(1, 2 * LATELY), *range(5, 9)):
        pace.add({"step": step, "seconds": float(step), "loss": 1.0, "samples": 2 * step, "waited": 0.0})
    assert (pace.steps, pace.samples_per_second) == (8, 2.0)
