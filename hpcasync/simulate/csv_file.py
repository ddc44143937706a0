"""Numbers from a CSV file, or one line about what is wrong with it."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from hpcasync.errors import UsageError
from hpcasync.simulate.problems import Vector

COLUMNS = 2  # at least: one to learn from, and the target
LINES = 2


def read_csv(path: Path) -> Vector:
    """(lines, columns) the numbers in a file of comma-separated values; a first line of names is skipped.

    Raises:
        UsageError: no such file, no text, a field that is no finite number, lines of unequal length, too few of them.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, fields) for fields in reader if any(field.strip() for field in fields)]
    except OSError as error:
        raise UsageError(f"it cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"it is not comma-separated text ({error})") from None
    if lines and all(_number(field) is None for field in lines[0][1]):
        del lines[0]
    if len(lines) < LINES:
        raise UsageError(f"{len(lines)} lines of numbers; at least {LINES} are needed")
    width = len(lines[0][1])
    if width < COLUMNS:
        raise UsageError(f"{width} column; at least {COLUMNS} are needed, the last one is the target")
    table = np.empty((len(lines), width))
    for row, (number, fields) in enumerate(lines):
        if len(fields) != width:
            raise UsageError(f"line {number}: {len(fields)} columns where the first line has {width}")
        table[row] = [_finite(path, number, field) for field in fields]
    return table


def _number(field: str) -> float | None:
    try:
        return float(field)
    except ValueError:
        return None


def _finite(path: Path, number: int, field: str) -> float:
    value = _number(field)
    if value is None or not math.isfinite(value):
        raise UsageError(f"line {number}: {field.strip()!r} is not a finite number")
    return value
