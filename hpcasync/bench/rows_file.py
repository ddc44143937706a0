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


def check_replaceable(path: Path) -> None:
    """Raises UsageError for a file that is not a bench's rows, or that has no folder to be in."""
    if path.is_dir():
        raise UsageError(f"--json {path}: it is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise UsageError(f"--json {path}: there is no folder {path.parent}")
    if path.is_file() and path.stat().st_size and not _holds_rows(path):
        raise UsageError(f"--json {path}: it exists and does not hold a bench's rows; give another name")


def _holds_rows(path: Path) -> bool:
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(rows, list) and all(isinstance(row, dict) and "bench" in row for row in rows)
