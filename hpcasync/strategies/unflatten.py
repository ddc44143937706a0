"""An optimizer of flat parameters, turned into one of the model's own: what it holds, and the state it has."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hpcasync.replica import Pair


def unflatten(optimizer: torch.optim.Optimizer, pair: Pair) -> None:
    """Give ``optimizer`` the tensors of ``pair`` in place of its flat parameter, if it holds that, and their state."""
    state = optimizer.state.pop(pair.flat, {})
    for tensor, span in zip(pair.tensors, pair.spans, strict=True):
        if state:
            optimizer.state[tensor] = part_of(state, pair, span.start, span.stop, span.shape)
    for group in optimizer.param_groups:
        group["params"] = [each for held in group["params"] for each in (pair.tensors if held is pair.flat else [held])]


def part_of(state: Mapping[str, Any], pair: Pair, start: int, stop: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Of an optimizer's state of ``pair.flat``: [start, stop) of what it has per element, and the rest."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.shape == pair.flat.shape:
            return value[start:stop].view(shape).clone()
        return copy.deepcopy(value)

    return {name: cut(value) for name, value in state.items()}


@contextmanager
def only(optimizer: torch.optim.Optimizer, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Have ``optimizer`` hold only those of its parameters that are among ``tensors``."""
    own, groups = set(tensors), optimizer.param_groups
    everything = [group["params"] for group in groups]
    for group, parameters in zip(groups, everything, strict=True):
        group["params"] = [parameter for parameter in parameters if parameter in own]
    try:
        yield
    finally:
        for group, parameters in zip(groups, everything, strict=True):
            group["params"] = parameters
