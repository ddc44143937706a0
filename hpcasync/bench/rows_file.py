"""The file that ``--json`` names: rows, and nothing else is ever overwritten by them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpcasync.bench.rows import Row
from hpcasync.json_file import check_replaceable, write_entries


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Raises UsageError where it cannot be written."""
    write_entries(path, [row.entry() for row in rows])


def check_rows(path: Path) -> None:
    """Raises UsageError for a file that is not a bench's rows, or that has no folder to be in."""
    check_replaceable(path, "a bench's rows", "bench")
