"""What ``--strategy NAME k=v ...`` may name; the table of it is in ``table.py``."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hpcasync.compression import Compression, parse_compression
from hpcasync.errors import UsageError, suggestion
from hpcasync.replica import Replica
from hpcasync.strategies.strategy import Strategy, adopt
from hpcasync.strategies.table import ADDING, FAMILIES, STRATEGIES, Entry, Family
from hpcasync.world import World

__all__ = ["ADDING", "FAMILIES", "STRATEGIES", "Choice", "Entry", "Family", "Strategy", "adopt", "parse_strategy"]


@dataclass(frozen=True)
class Choice:
    """A strategy's name and all of its hyperparameters, as given or by default."""

    name: str
    options: Mapping[str, Any]
    compression: Compression | None = None

    def build(self, replica: Replica, world: World, optimizer: torch.optim.Optimizer) -> Strategy:
        """Collective. The strategy, ready for its first step."""
        strategy = STRATEGIES[self.name].cls(replica, world, optimizer, **self.options)
        if self.compression is not None:
            strategy.compress(self.compression)
        return strategy


def parse_strategy(words: Sequence[str], compress: str | None = None) -> Choice:
    """``["downpour", "pull=4"]`` as a Choice, whose messages travel compressed like "topk:0.01", say.

    Raises:
        UsageError: an unknown strategy or hyperparameter, or a value of the wrong type; the message lists the known. A
            compression that is not known, or that the strategy does not take.
    """
    if not words or words[0] not in STRATEGIES:
        given = words[0] if words else "nothing"
        told = suggestion(given, STRATEGIES, f"the known ones are {', '.join(STRATEGIES)}")
        raise UsageError(f"unknown strategy {given!r}; {told}")
    name = words[0]
    options = STRATEGIES[name].hyperparameters()
    types = typing.get_type_hints(STRATEGIES[name].cls.__init__)
    for word in words[1:]:
        key, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"strategy {name}: {word!r} is not of the form key=value")
        if key not in options:
            known = ", ".join(f"{k}={v}" for k, v in options.items()) or "none"
            told = suggestion(key, options, f"its options and defaults: {known}")
            raise UsageError(f"strategy {name} has no option {key!r}; {told}")
        options[key] = _value(name, key, text, types[key])
    return Choice(name, options, _compression(name, compress) if compress is not None else None)


def _compression(name: str, text: str) -> Compression:
    compression = parse_compression(text)
    taken = STRATEGIES[name].cls.compresses
    if not taken:
        able = ", ".join(name for name, entry in STRATEGIES.items() if entry.cls.compresses)
        raise UsageError(f"--compress {text}: strategy {name} sends nothing compressed; these can: {able}")
    if compression.name not in taken:
        raise UsageError(f"--compress {text}: strategy {name} takes {', '.join(taken)}")
    return compression


def _value(name: str, key: str, text: str, kind: Any) -> Any:
    """``text`` as the type that the constructor's signature names: int, float, str or a Literal of strings."""
    choices = typing.get_args(kind)
    if choices:
        if text not in choices:
            raise UsageError(f"strategy {name}: {key}={text} is not one of {', '.join(choices)}")
        return text
    try:
        value = kind(text)
    except ValueError:
        article = "an integer" if kind is int else "a number"
        raise UsageError(f"strategy {name}: {key}={text} is not {article}") from None
    return int(value) if kind is float and value == value and abs(value) < 2**53 and value == int(value) else value
