"""Options of every type a job may declare: in run.json they are the same text in every process, so a run goes on."""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag, StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcasync.arguments import parse
from hpcasync.errors import UsageError
from hpcasync.launch.execute import REQUEUE
from hpcasync.run import Options
from hpcasync.run.config import plain
from hpcasync.run.main import main
from tests.small_job import attempt, codes


class Colour(Enum):
    RED = 1
    BLUE = object()


class Word(StrEnum):
    LONG = "a long word"


class Bits(Flag):
    ONE = 1
    TWO = 2


class Point(NamedTuple):
    x: int
    y: float


@dataclass
class Adam:
    lr: float = math.inf
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass
class Other(Adam):
    pass


VALUES: list[tuple[Any, Any]] = [
    (math.inf, "inf"),
    (-math.inf, "-inf"),
    (math.nan, "nan"),
    (0.1, 0.1),
    (True, True),
    (None, None),
    (Colour.BLUE, "BLUE"),
    (Word.LONG, "LONG"),
    (Bits.ONE | Bits.TWO, "ONE|TWO"),
    ({"b", "a", "c"}, ["a", "b", "c"]),
    (frozenset({Colour.RED, Colour.BLUE}), ["BLUE", "RED"]),
    (1 + 2j, "(1+2j)"),
    (torch.device("cuda", 1), "cuda:1"),
    (torch.bfloat16, "torch.bfloat16"),
    (datetime(2026, 1, 2, 3, tzinfo=UTC), "2026-01-02 03:00:00+00:00"),
    (date(2026, 1, 2), "2026-01-02"),
    (time(4, 5), "04:05:00"),
    (timedelta(days=1), "1 day, 0:00:00"),
    (Path("a/b"), "a/b"),
    (b"\xff\0", "ff00"),
    (Decimal("0.10"), "0.10"),
    (Fraction(2, 4), "1/2"),
    (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (range(3), "range(0, 3)"),
    (deque([1, 2]), [1, 2]),
    (Point(1, math.inf), [1, "inf"]),
    ({Colour.RED: {2: math.nan}}, {"RED": {"2": "nan"}}),
    (Adam(), {"class": "Adam", "lr": "inf", "betas": [0.9, 0.999]}),
    (Other(), {"class": "Other", "lr": "inf", "betas": [0.9, 0.999]}),
    (torch.nn.ReLU, "torch.nn.modules.activation.ReLU"),
    (math.sqrt, "math.sqrt"),
]


@pytest.mark.parametrize(("value", "held"), VALUES, ids=[repr(held) for _, held in VALUES])
def test_what_run_json_holds(value: Any, held: Any) -> None:
    assert plain(value, "x") == held
    assert json.loads(json.dumps(plain(value, "x"), allow_nan=False)) == held


@settings(max_examples=50)
@given(st.recursive(st.floats() | st.integers() | st.text() | st.binary() | st.complex_numbers() | st.datetimes(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner)))  # fmt: skip
def test_what_was_written_compares_equal(value: Any) -> None:
    held = plain(value, "x")
    assert json.loads(json.dumps(held, allow_nan=False)) == held


@pytest.mark.parametrize("value", [object(), torch.ones(1), [object()], {"a": object()}])
def test_what_no_text_stands_for_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"^--my-option: run.json cannot hold a value of type (object|Tensor)"):
        plain(value, "my_option")


@dataclass(kw_only=True)
class Job(Options):
    clip: float = math.inf
    floor: float = math.nan
    colour: Colour = Colour.RED
    words: set[str] = field(default_factory=lambda: {"x", "y"})
    numbers: frozenset[int] = frozenset({3, 1})
    phase: complex = 1j
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    since: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    adam: Adam = field(default_factory=Adam)


@pytest.mark.usefixtures("quick")
@pytest.mark.timeout(60)
def test_a_run_with_such_options_goes_on(tmp_path: Path) -> None:
    """As the command line gives them, so that no value is the one of the attempt before."""
    words = ["--adam.lr", "inf", "--colour", "BLUE", "--clip", "inf", "--device", "cpu", "--words", "b", "a"]
    for stop in ({0: 3}, None):
        assert codes(attempt(tmp_path / "run", "sync", stop=stop, job=parse(Job, words, "job.py"))) == {
            REQUEUE if stop else 0
        }
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["clip"] == "inf" and config["floor"] == "nan" and config["words"] == ["a", "b"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"clip": 1.0}, "--clip inf, not 1.0"),
        ({"floor": math.inf}, "--floor nan, not inf"),
        ({"colour": Colour.BLUE}, "--colour RED, not BLUE"),
        ({"words": {"x"}}, "--words ['x', 'y'], not ['x']"),
        ({"adam": Other()}, "'class': 'Adam'"),
    ],
)
def test_another_value_is_told(
    change: dict[str, Any], complaint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    attempt(tmp_path / "run", "sync", stop={0: 3}, job=Job())
    capfd.readouterr()
    assert codes(attempt(tmp_path / "run", "sync", job=replace(Job(), **change))) == {2}
    assert complaint in capfd.readouterr().err


@dataclass(kw_only=True)
class Bad(Options):
    scale: Any = field(default_factory=object)


def train_nothing(run: Any, options: Bad) -> None:
    raise AssertionError("it is refused before")


def test_an_option_that_run_json_cannot_hold_is_refused_before_there_is_a_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(train_nothing, Bad, ["--world", "sim", "--results", str(tmp_path / "results")])
    assert end.value.code == 2
    assert capfd.readouterr().err == (
        "hpcasync: error: --scale: run.json cannot hold a value of type object; use a text or a number\n"
    )
    assert not (tmp_path / "results").exists()


def test_restart_goes_with_resume() -> None:
    with pytest.raises(UsageError, match="--restart: it says what --resume may do"):
        Options(restart=True).resolve()
    Options(restart=True, resume=True, name="run").resolve()
