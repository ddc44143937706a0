"""The file of a sweep: which options of a job, and which hyperparameters of strategies, are searched.

    trials = 40                  # how many; without it: every combination of the lists
    seed = 0                     # of the search

    [search]                     # options of the job
    lr = { low = 0.01, high = 1.0, log = true, sync = 0.2 }
    batch_size = [16, 32, 64]

    [strategy.downpour]          # a table per strategy that is tried, with its hyperparameters
    pull = [1, 2, 4, 8]
    bound = { low = 1, high = 16 }

    [strategy.eager]

A list is a choice of its values; in one, false leaves the option away and true gives it without a value. A range of two
whole numbers is of whole numbers; ``step`` makes it a grid, ``log`` equal chances per factor. ``sync`` is the learning
rate that suits synchronous SGD: see :mod:`hpcasync.sweep.rate`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hpcasync.errors import UsageError
from hpcasync.strategies import parse_strategy
from hpcasync.toml_file import read_toml

Value = str | int | float | bool
Parameters = dict[str, Value]  # "lr": 0.1, "strategy": "downpour", "downpour.bound": 4
STRATEGY = "strategy"
RATE = "lr"
# The sweep's own, and what every trial must have in common to be compared.
_TAKEN = ("name", "results", "resume", "replay", "target", STRATEGY)
_RANGE = ("low", "high", "log", "step")


class Draw(Protocol):
    """What of an ``optuna.Trial`` is needed here."""

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float: ...


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Value, ...]

    def draw(self, trial: Draw, name: str) -> Value:
        chosen: Value = trial.suggest_categorical(name, self.values)
        return chosen


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``; whole if these and ``step`` are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def draw(self, trial: Draw, name: str) -> Value:
        if isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float):
            return trial.suggest_int(name, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)


Dimension = Choice | Range


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        options: {option of the job: its values}.
        strategies: {strategy: {hyperparameter: its values}}; empty: the job's --strategy stays as it is.
        trials: how many; None: every combination.
        sync_rate: the learning rate that suits synchronous SGD, if it is known.
        document: what the file says, except for ``trials``.
    """

    options: Mapping[str, Dimension]
    strategies: Mapping[str, Mapping[str, Dimension]]
    trials: int | None
    seed: int
    sync_rate: float | None
    document: Mapping[str, Any]

    def draw(self, trial: Draw) -> Parameters:
        """The parameters of one trial; those of a strategy only where it is the one that was drawn."""
        drawn = {name: dimension.draw(trial, name) for name, dimension in self.options.items()}
        if not self.strategies:
            return drawn
        strategy = str(Choice(tuple(self.strategies)).draw(trial, STRATEGY))
        own = {f"{strategy}.{key}": values for key, values in self.strategies[strategy].items()}
        return drawn | {STRATEGY: strategy} | {name: values.draw(trial, name) for name, values in own.items()}

    def combinations(self) -> list[Parameters]:
        """Every one; the space holds no range (see :func:`read_space`)."""
        common = _product(self.options)
        if not self.strategies:
            return common
        return [
            drawn | {STRATEGY: strategy} | chosen
            for strategy, keys in self.strategies.items()
            for chosen in _product({f"{strategy}.{key}": dimension for key, dimension in keys.items()})
            for drawn in common
        ]


def words(parameters: Mapping[str, Value]) -> list[str]:
    """The job's options for a trial, to be appended to its command line."""
    found: list[str] = []
    for name, value in parameters.items():
        option = f"--{name.replace('_', '-')}"
        if name == STRATEGY:
            found += [option, str(value)]
            found += [f"{key.partition('.')[2]}={v}" for key, v in parameters.items() if key.startswith(f"{value}.")]
        elif "." not in name and value is not False:
            found.append(option if value is True else f"{option}={value}")
    return found


def read_space(path: Path) -> Space:
    """The space that the file ``path`` describes.

    Raises:
        UsageError: it cannot be read, is not TOML, or says something that cannot be searched.
    """
    return read_toml(path, _space, str(path))


def _space(document: dict[str, Any]) -> Space:
    unknown = sorted(document.keys() - {"trials", "seed", "search", STRATEGY})
    if unknown:
        raise UsageError(f"unknown entry {unknown[0]!r}; the known ones are trials, seed, [search], [strategy.NAME]")
    trials, seed = _count(document, "trials", 1), _count(document, "seed", 0) or 0
    search, tables = _table(document, "search"), _table(document, STRATEGY)
    rate = search.get(RATE)
    sync_rate = None
    if isinstance(rate, dict) and "sync" in rate:
        sync_rate = _positive("lr: sync", rate["sync"])
        search[RATE] = {key: value for key, value in rate.items() if key != "sync"}
    options = {_option(name): _dimension(name, value) for name, value in search.items()}
    strategies = {name: _strategy(name, tables[name]) for name in tables}
    everything = [*options.items()] + [(f"{s}.{key}", d) for s, keys in strategies.items() for key, d in keys.items()]
    if not everything and len(strategies) < 2:
        raise UsageError("nothing is searched: it has no values in [search], and no two [strategy.NAME]")
    ranges = [name for name, dimension in everything if isinstance(dimension, Range)]
    if trials is None and ranges:
        raise UsageError(f"{ranges[0]} is a range, which has no end of combinations: say trials = 40, or give a list")
    kept = {key: value for key, value in document.items() if key != "trials"}
    return Space(options, strategies, trials, seed, sync_rate, kept)


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(
            f"{name} = {table!r}: it must be a table, [{'search' if name == 'search' else 'strategy.NAME'}]"
        )
    return dict(table)


def _count(document: dict[str, Any], name: str, least: int) -> int | None:
    value = document.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise UsageError(f"{name} = {value!r}: it must be a whole number, {least} or more")
    return value


def _option(name: str) -> str:
    plain = name.replace("-", "_")
    if plain in _TAKEN:
        instead = "give [strategy.NAME] tables" if plain == STRATEGY else "the sweep sets it, or all trials share it"
        raise UsageError(f"{name} cannot be searched: {instead}")
    if not plain.isidentifier():
        raise UsageError(f"{name!r} is not the name of an option")
    return plain


def _strategy(name: str, table: Any) -> dict[str, Dimension]:
    if not isinstance(table, dict):
        raise UsageError(f"strategy.{name} = {table!r}: it must be a table, [strategy.{name}]")
    parse_strategy([name])
    dimensions = {key: _dimension(f"{name}.{key}", value) for key, value in table.items()}
    for key, dimension in dimensions.items():
        for value in dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high):
            parse_strategy([name, f"{key}={value}"])
    return dimensions


def _dimension(name: str, value: Any) -> Dimension:
    if isinstance(value, dict):
        return _range(name, value)
    if not isinstance(value, list) or not value:
        raise UsageError(f"{name} = {value!r}: it must be a list of values, or a range {{ low = 0.01, high = 1.0 }}")
    for item in value:
        if not isinstance(item, str | int | float) or (isinstance(item, float) and not math.isfinite(item)):
            raise UsageError(f"{name}: {item!r} is no text, number, true or false")
        if isinstance(item, str) and not item.isprintable():
            raise UsageError(f"{name}: {item!r} holds a character that no option has")
    if len(set(value)) < len(value):
        raise UsageError(f"{name}: a value is in its list twice")
    return Choice(tuple(value))


def _range(name: str, table: dict[str, Any]) -> Range:
    unknown = sorted(table.keys() - set(_RANGE))
    if unknown or not {"low", "high"} <= table.keys():
        what = f"unknown entry {unknown[0]!r}" if unknown else "low or high is missing"
        raise UsageError(f"{name}: {what}; a range is {{ low = 0.01, high = 1.0, log = true }} or has a step")
    low, high = _number(f"{name}: low", table["low"]), _number(f"{name}: high", table["high"])
    step = _number(f"{name}: step", table["step"]) if "step" in table else None
    log = table.get("log", False)
    if not isinstance(log, bool):
        raise UsageError(f"{name}: log = {log!r}: it must be true or false")
    if low >= high:
        raise UsageError(f"{name}: low = {low} must be below high = {high}")
    if log and (low <= 0 or step is not None):
        raise UsageError(f"{name}: log = true needs a low above 0, and no step")
    if step is not None and step <= 0:
        raise UsageError(f"{name}: step = {step} must be above 0")
    return Range(low, high, log, step)


def _number(name: str, value: Any) -> float:
    """As it is, an int stays one."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise UsageError(f"{name} = {value!r}: it must be a number")
    return value


def _positive(name: str, value: Any) -> float:
    if _number(name, value) <= 0:
        raise UsageError(f"{name} = {value}: it must be above 0")
    return float(value)


def _product(dimensions: Mapping[str, Dimension]) -> list[Parameters]:
    values = [dimension.values for dimension in dimensions.values() if isinstance(dimension, Choice)]
    return [dict(zip(dimensions, combination, strict=True)) for combination in itertools.product(*values)]
