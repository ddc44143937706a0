"""Options as JSON holds them: the same text in every process, for run.json and to compare with at --resume."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import deque
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import Any
from uuid import UUID

import torch

from hpcasync.errors import UsageError

# str() of these is one value's and no other's, and the same in every process.
_TEXTS = (PurePath, complex, date, time, timedelta, Decimal, Fraction, UUID, range, torch.device, torch.dtype)


def plain(value: Any, option: str) -> Any:
    """``value``, or what of it is in it, as strict JSON holds it.

    Raises:
        UsageError: it has a type that no text stands for; ``option`` names it.
    """
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, _TEXTS):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple | deque):
        return [plain(item, option) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item, option) for item in value), key=json.dumps)
    if isinstance(value, Mapping):
        return {str(plain(key, option)): plain(item, option) for key, item in value.items()}
    if hasattr(value, "__qualname__"):  # a class or a function
        return f"{value.__module__}.{value.__qualname__}"
    if dataclasses.is_dataclass(value):  # one of several, perhaps: its class tells which
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__} | plain(fields, option)
    kind = type(value).__name__
    raise UsageError(
        f"--{option.replace('_', '-')}: run.json cannot hold a value of type {kind}; use a text or a number"
    )
