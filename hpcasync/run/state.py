"""Is what a checkpoint holds of a rank something to go on with? Asked before anything is changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from hpcasync.replica import Replica
from hpcasync.run.feed import Standing
from hpcasync.run.metrics import Totals
from hpcasync.strategies.finite import is_finite

_PARTS = ("strategy", "staleness", "totals", "standing", "random")
_LARGEST = 2**53  # what a table of float64 still counts exactly
_COUNTED = frozenset({"steps", "samples", "epoch", "batches"})

Counts = TypeVar("Counts", Totals, Standing)


def check_state(state: Mapping[str, Any], replica: Replica) -> None:
    """Raises ValueError, in a few words, where ``state`` is none of a rank that trains ``replica``'s model."""
    for part in _PARTS:
        if not isinstance(state.get(part), dict):
            raise ValueError(f"{part} is missing")
    read_counts(Totals, state["totals"])
    read_counts(Standing, state["standing"])
    _check_staleness(state["staleness"])
    _check_model(state["strategy"], replica)


def read_counts(kind: type[Counts], entries: Mapping[str, Any]) -> Counts:
    """``entries`` as the dataclass ``kind``, whose fields are numbers. Raises ValueError."""
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    odd = sorted(map(str, entries.keys() ^ fields.keys()))
    if odd:
        raise ValueError(f"{kind.__name__}: {', '.join(odd)} unknown or missing")
    for name, value in entries.items():
        whole = fields[name] == "int"
        if type(value) is not int and (whole or type(value) is not float):
            raise ValueError(f"{name} {value!r} is no {'whole ' if whole else ''}number")
        if not (0 if name in _COUNTED else -_LARGEST) <= value < _LARGEST:
            raise ValueError(f"{name} {value}")
    return kind(**entries)


def _check_staleness(staleness: Mapping[str, Any]) -> None:
    histogram = staleness.get("histogram")
    numbers = [staleness.get("last")]
    if isinstance(histogram, dict):
        numbers += [number for entry in histogram.items() for number in entry]
    if not isinstance(histogram, dict) or not all(type(n) is int and abs(n) < _LARGEST for n in numbers):
        raise ValueError("the staleness is no histogram")


def _check_model(strategy: Mapping[str, Any], replica: Replica) -> None:
    _match("parameters", strategy.get("parameters"), [pair.params for pair in replica.pairs])
    _match("buffers", strategy.get("buffers"), [flat.memory for flat in replica.buffers])
    constants = strategy.get("constants")
    if not isinstance(constants, dict) or constants.keys() != replica.constants.keys():
        raise ValueError("another model's constants")
    for name, tensor in replica.constants.items():
        _match(name, [constants[name]], [tensor])
    if not all(map(is_finite, strategy["parameters"])):
        raise ValueError("the parameters are not finite")


def _match(name: str, saved: Any, own: Sequence[Tensor]) -> None:
    """Raises ValueError unless ``saved`` are tensors of the shapes and dtypes of ``own``."""
    wanted = [_described(tensor) for tensor in own]
    found = [_described(each) for each in saved] if isinstance(saved, list) else saved
    if found != wanted:
        raise ValueError(f"{name} {found}, and the model has {wanted}")


def _described(tensor: Any) -> str:
    if not isinstance(tensor, Tensor):
        return type(tensor).__name__
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
