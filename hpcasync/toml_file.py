"""TOML files that users write, read into what they describe, with one line about whatever is wrong with them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hpcasync.errors import UsageError

Described = TypeVar("Described")


def read_toml(path: Path, parse: Callable[[dict[str, Any]], Described], called: str) -> Described:
    """``parse(entries)`` of the file's entries.

    Raises:
        UsageError: it cannot be read, is not TOML, or ``parse`` raises one; the message begins with ``called``.
    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{called}: it cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{called}: it is not TOML: {' '.join(str(error).split())}") from None
    try:
        return parse(entries)
    except UsageError as error:
        raise UsageError(f"{called}: {error}") from None
