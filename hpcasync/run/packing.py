"""A state as a JSON document, with a name where a tensor was, and the tensors by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_MARK = "~"  # begins the only key of an object that stands for something JSON has not


def pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as strict JSON can hold it; tensors go to ``tensors`` under the name of their place.

    Raises:
        TypeError: something else than dicts, lists, tuples, tensors, numbers, texts, booleans and None is in it.
    """
    if isinstance(value, Tensor):
        if value.is_complex():  # safetensors knows but one complex dtype
            return {f"{_MARK}complex": pack(torch.view_as_real(value.detach().resolve_conj()), place, tensors)}
        tensors[place] = value
        return {f"{_MARK}tensor": place}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {f"{_MARK}float": str(value)}
    if isinstance(value, list | tuple):
        items = [pack(item, f"{place}.{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {f"{_MARK}tuple": items}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith(_MARK) for key in value):
            return {key: pack(item, f"{place}.{key}", tensors) for key, item in value.items()}
        keys, values = list(value.keys()), list(value.values())
        return {f"{_MARK}dict": [pack(keys, f"{place}.keys", tensors), pack(values, f"{place}.values", tensors)]}
    raise TypeError(f"{place}: a checkpoint cannot hold a {type(value).__name__}")


def unpack(document: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What :func:`pack` has packed. Raises KeyError, TypeError or ValueError if it was something else."""
    if isinstance(document, list):
        return [unpack(item, tensors) for item in document]
    if not isinstance(document, dict):
        return document
    mark = next(iter(document), "")
    if not mark.startswith(_MARK):
        return {key: unpack(item, tensors) for key, item in document.items()}
    content = document[mark]
    if mark == f"{_MARK}tensor":
        return tensors[content]
    if mark == f"{_MARK}complex":
        return torch.view_as_complex(unpack(content, tensors))
    if mark == f"{_MARK}float":
        return float(content)
    items = unpack(content, tensors)
    return tuple(items) if mark == f"{_MARK}tuple" else dict(zip(*items, strict=True))
