"""Laws of compute time: how long, or how many times as long as usual, a step of a rank takes.

A law is drawn from once per step with the rank's own generator, so a run is reproducible from its seed.
``hpcasync.sim`` reads a draw as seconds, ``hpcasync.faults`` as a factor on a step's usual duration.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from hpcasync.errors import UsageError


class Law(Protocol):
    """A positive number for every (rank, step)."""

    def draw(self, rng: np.random.Generator, rank: int, step: int) -> float:
        """The seconds, or the factor, of this rank's step number ``step`` (from 0); above 0."""
        ...


def _require(holds: bool, value: float, what: str) -> None:
    if not holds:
        raise UsageError(f"{value!r} is not {what}")


def _require_duration(value: float, what: str) -> None:
    _require(0 < value < math.inf, value, f"{what}: above 0 and finite")


@dataclass(frozen=True)
class Constant:
    """Every step takes ``value``."""

    value: float = 1.0

    def __post_init__(self) -> None:
        _require_duration(self.value, "a duration")

    def draw(self, rng: np.random.Generator, rank: int, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Exponential:
    """Exponential with the given mean: memoryless, so the slowest of n takes H_n = 1 + 1/2 + ... + 1/n means."""

    mean: float = 1.0

    def __post_init__(self) -> None:
        _require_duration(self.mean, "a mean")

    def draw(self, rng: np.random.Generator, rank: int, step: int) -> float:
        return max(self.mean * rng.exponential(), sys.float_info.min)  # the generator may return 0


@dataclass(frozen=True)
class Pareto:
    """A heavy tail, P(T > t) = (m / t)^shape for t > m, with m = (shape - 1) / shape so that the mean is 1."""

    shape: float

    def __post_init__(self) -> None:
        _require(1 < self.shape < math.inf, self.shape, "a shape: above 1, where the mean is finite")

    def draw(self, rng: np.random.Generator, rank: int, step: int) -> float:
        return (self.shape - 1) / self.shape * (1 + rng.pareto(self.shape))


@dataclass(frozen=True)
class Transient:
    """A step takes 1, and with the given probability ``factor``: a page fault, a daemon, a neighbour's job."""

    probability: float
    factor: float

    def __post_init__(self) -> None:
        _require(0 <= self.probability <= 1, self.probability, "a probability: from 0 to 1")
        _require_duration(self.factor, "a factor")

    def draw(self, rng: np.random.Generator, rank: int, step: int) -> float:
        return self.factor if rng.random() < self.probability else 1.0


@dataclass(frozen=True)
class Sqrt:
    """Rank i takes sqrt(i + 1): fixed, mildly unequal machines, as in the papers on asynchronous SGD."""

    def draw(self, rng: np.random.Generator, rank: int, step: int) -> float:
        return math.sqrt(rank + 1)


@dataclass(frozen=True)
class Slow:
    """The given rank takes ``factor``, the others 1."""

    rank: int
    factor: float

    def __post_init__(self) -> None:
        _require(self.rank >= 0, self.rank, "a rank: 0 or more")
        _require_duration(self.factor, "a factor")

    def draw(self, rng: np.random.Generator, rank: int, step: int) -> float:
        return self.factor if rank == self.rank else 1.0


class _Form(NamedTuple):
    build: Callable[..., Law]
    words: tuple[type[int] | type[float], ...]  # what the words after the name are
    required: int  # how many of them must be there
    usage: str


_FORMS = {
    "constant": _Form(Constant, (float,), 0, "constant[:VALUE]"),
    "exponential": _Form(Exponential, (float,), 0, "exponential[:MEAN]"),
    "pareto": _Form(Pareto, (float,), 1, "pareto:SHAPE"),
    "transient": _Form(Transient, (float, float), 2, "transient:PROBABILITY:FACTOR"),
    "sqrt": _Form(Sqrt, (), 0, "sqrt"),
    "slow": _Form(Slow, (int, float), 2, "slow:RANK:FACTOR"),
}


def parse_law(text: str) -> Law:
    """The law that ``text`` names, for example ``"exponential:0.02"``.

    Raises:
        UsageError: an unknown law, a number too many or too few, or one out of range.
    """
    name, *words = text.split(":")
    form = _FORMS.get(name)
    if form is None:
        known = ", ".join(form.usage for form in _FORMS.values())
        raise UsageError(f"law {text!r} is unknown; known: {known}")
    if not form.required <= len(words) <= len(form.words):
        raise UsageError(f"law {text!r}: write {form.usage}")
    try:
        return form.build(*(_number(word, kind) for word, kind in zip(words, form.words, strict=False)))
    except UsageError as error:
        raise UsageError(f"law {text!r}: {error}") from None


def _number(word: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(word)
    except ValueError:
        raise UsageError(f"{word!r} is not {'a whole number' if kind is int else 'a number'}") from None
