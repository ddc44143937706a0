"""The trace of a run: what every rank handed in to its strategy, and when. ``trace.rank<r>.jsonl``, a line per step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcasync.errors import UsageError


@dataclass(frozen=True)
class Contribution:
    """One step's contribution.

    Attributes:
        rank: whose it is.
        clock: which of the rank's steps made it; the first is 1.
        span: [start, stop) of the parameters that it is about.
        samples: that it was computed from.
        seconds: from the start of the run until it was handed in.
        staleness: of what the strategy last applied of this rank's, after it was handed in: updates made since its
            parameters were read.
    """

    rank: int
    clock: int
    span: tuple[int, int]
    samples: int
    seconds: float
    staleness: int

    def entry(self) -> dict[str, Any]:
        return vars(self) | {"span": list(self.span)}


def trace_file(folder: Path, rank: int) -> Path:
    return folder / f"trace.rank{rank}.jsonl"


def read_traces(folder: Path) -> list[list[Contribution]]:
    """Every rank's contributions, in order. A torn last line, as a killed run leaves it, does not count.

    Raises:
        UsageError: the run was not traced, or a line is damaged.
    """
    count = len(list(folder.glob("trace.rank*.jsonl")))
    if not count:
        raise UsageError(f"{folder} holds no trace: run the job with --trace to have one")
    return [_read(trace_file(folder, rank), rank) for rank in range(count)]


def _read(path: Path, rank: int) -> list[Contribution]:
    try:
        lines = path.read_text().split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: it cannot be read ({error})") from None
    contributions = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            found = Contribution(**entry | {"span": tuple(entry["span"])})
            damaged = (found.rank, found.clock) != (rank, number) or not found.seconds >= 0
        except (ValueError, TypeError, KeyError):
            damaged = True
        if damaged:
            raise UsageError(f"{path}, line {number}: not step {number} of rank {rank}")
        contributions.append(found)
    return contributions
