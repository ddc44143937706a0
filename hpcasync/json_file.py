"""JSON as every reader takes it, in files that are whole at any moment."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from hpcasync.errors import UsageError


def finite(value: Any) -> Any:
    """``value`` as strict JSON can hold it: NaN (a loss that diverged) becomes null, infinity the string "inf"."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def write_entries(path: Path, entries: list[dict[str, Any]]) -> None:
    """The file that ``--json`` names. Raises UsageError where it cannot be written."""
    try:
        path.write_text(json.dumps(finite(entries), indent=1, allow_nan=False) + "\n")  # perhaps /dev/stdout
    except OSError as error:
        raise UsageError(f"--json {path}: it cannot be written ({error.strerror})") from None


def check_replaceable(path: Path, wanted: str, mark: str) -> None:
    """Raises UsageError for a file that is not a list of entries with the key ``mark``, or that has no folder."""
    if path.is_dir():
        raise UsageError(f"--json {path}: it is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise UsageError(f"--json {path}: there is no folder {path.parent}")
    if path.is_file() and path.stat().st_size and not _is_of(path, mark):
        raise UsageError(f"--json {path}: it exists and does not hold {wanted}; give another name")


def _is_of(path: Path, mark: str) -> bool:
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(entries, list) and all(isinstance(entry, dict) and mark in entry for entry in entries)


def write_json(path: Path, entries: dict[str, Any] | list[Any]) -> None:
    """Replace ``path`` atomically: a reader sees the old content or the new, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        json.dump(finite(entries), file, indent=1, allow_nan=False)
        file.write("\n")
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Return when the names in ``folder`` are on the disk: what was renamed there stays so after a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
