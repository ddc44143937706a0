"""The file that ``--json`` names: rows, and nothing else is ever overwritten by them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hpcasync.bench.rows import Row
from hpcasync.errors import UsageError
from hpcasync.run.metrics import finite


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Raises UsageError where it cannot be written."""
    try:
        path.write_text(json.dumps(finite([row.entry() for row in rows]), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UsageError(f"--json {path}: it cannot be written ({error.strerror})") from error


def check_replaceable(path: Path, wanted: str = "a bench's rows", mark: str = "bench") -> None:
    """Raises UsageError for a file that is not a list of entries with the key ``mark``, or that has no folder."""
    if path.is_dir():
        raise UsageError(f"--json {path}: it is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise UsageError(f"--json {path}: there is no folder {path.parent}")
    if path.is_file() and path.stat().st_size and not _is_of(path, mark):
        raise UsageError(f"--json {path}: it exists and does not hold {wanted}; give another name")


def _is_of(path: Path, mark: str) -> bool:
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(rows, list) and all(isinstance(row, dict) and mark in row for row in rows)
