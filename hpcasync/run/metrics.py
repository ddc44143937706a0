"""What a run measures: one JSON line per step and rank, and the summary over all ranks."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.json_file import finite
from hpcasync.run.record import writing
from hpcasync.world import World

FLUSH_SECONDS = 1.0
_FULL = {errno.ENOSPC, errno.EDQUOT}
DECLARE = 'run.start(..., metric=Metric("accuracy", better="higher"))'  # what a job writes that is to be judged


@dataclass(frozen=True)
class Metric:
    """One of the figures that a job's evaluate() returns.

    Attributes:
        name: its key in what evaluate() returns.
        unit: empty for a pure number.
        better: which values are better, the "higher" or the "lower" ones.

    Raises:
        UsageError: another word for ``better``.
    """

    name: str
    unit: str = ""
    better: Literal["higher", "lower"] = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise UsageError(f'Metric({self.name!r}, better={self.better!r}): better is "higher" or "lower"')


def declared(metric: Metric | Sequence[Metric]) -> tuple[Metric, ...]:
    """What a job has told run.start(): one metric or several, the primary one first."""
    return (metric,) if isinstance(metric, Metric) else tuple(metric)


class Lines:
    """A file of JSON lines that only grows. Lines are buffered, and written whole at least once a second of steps.

    Attributes:
        lost: how many could not be written, for want of space; none of them is kept.
        error: what the system said about the last of them.
    """

    def __init__(self, path: Path) -> None:
        self.lost = 0
        self.error: OSError | None = None
        self._path = path
        self._buffer: list[str] = []
        self._flushed = time.monotonic()

    def rewind(self, steps: int, count: str) -> None:
        """Forget what was written after this many steps, which an entry calls ``count``: the run goes on from there."""
        kept = []
        for line in self._path.read_text().splitlines(keepends=True) if self._path.exists() else []:
            try:
                after = json.loads(line)[count] > steps
            except (ValueError, KeyError, TypeError):
                continue  # torn
            if not after:
                kept.append(line)
        self._path.write_text("".join(kept))

    def add(self, entry: dict[str, Any]) -> None:
        self._buffer.append(json.dumps(finite(entry), allow_nan=False) + "\n")
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered, or count it as lost while the file system is full.

        Raises:
            RunFailure: the folder cannot be written at all, so no checkpoint can be either.
        """
        # Opened each time: thousands of simulated ranks need no thousands of file descriptors.
        with writing(self._path.parent):
            try:
                self._append("".join(self._buffer))
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self.lost += len(self._buffer)
                self.error = error
        self._buffer.clear()
        self._flushed = time.monotonic()

    def _append(self, text: str) -> None:
        """All of it, or nothing."""
        with self._path.open("ab", buffering=0) as file:
            whole = file.tell()
            content = memoryview(text.encode())
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                file.truncate(whole)
                raise


@dataclass
class Totals:
    """What one rank has done from the first to its last step."""

    steps: int = 0
    samples: int = 0
    compute_seconds: float = 0.0  # computation and injected sleep, without exchange, data loading and evaluation
    wall_seconds: float = 0.0
    waited_seconds: float = 0.0
    staleness_count: int = 0
    staleness_sum: float = 0.0
    staleness_max: int = 0
    dropped: int = 0  # gradients that were computed and never applied
    non_finite: int = 0  # steps whose gradient was dropped because it, or the loss, was not finite
    lost_lines: int = 0  # of metrics, which could not be written
    interrupted: int = 0  # the signal that asked this rank to end

    def gather(self, world: World) -> list[Totals]:
        """Collective. Every rank's totals, by one sum of a table (size, fields) in which each rank has its own row."""
        names = [field.name for field in fields(self)]
        table = torch.zeros(world.size, len(names), dtype=torch.float64)
        table[world.rank] = torch.tensor([getattr(self, name) for name in names], dtype=torch.float64)
        flat: Tensor = table.view(-1)
        world.allreduce(flat)
        return [Totals(**dict(zip(names, row, strict=True))) for row in table.tolist()]


def summarize(everyone: list[Totals]) -> dict[str, dict[str, Any]]:
    """The summary of run.json, as far as the ranks' totals give it.

    ``ideal_share`` is the measured samples/s over the sum of what each rank would reach if it only computed:
    Σ samples / max wall / Σ_r (samples_r / compute_r).
    """
    samples = sum(rank.samples for rank in everyone)
    wall = max(rank.wall_seconds for rank in everyone)
    ideal = sum(rank.samples / rank.compute_seconds for rank in everyone if rank.compute_seconds)
    rate = samples / wall if wall else 0.0
    contributions = sum(rank.staleness_count for rank in everyone)
    staleness = sum(rank.staleness_sum for rank in everyone)
    shares = [rank.waited_seconds / rank.wall_seconds for rank in everyone if rank.wall_seconds]
    return {
        "seconds": figure(wall, "s", "lower"),
        "samples_per_second": figure(rate, "1/s", "higher"),
        "ideal_share": figure(rate / ideal if ideal else None, "", "higher"),
        "staleness_mean": figure(staleness / contributions if contributions else 0.0, "", "lower"),
        "staleness_max": figure(max(int(rank.staleness_max) for rank in everyone), "", "lower"),
        "dropped": figure(sum(int(rank.dropped) for rank in everyone), "", "lower"),
        "non_finite": figure(sum(int(rank.non_finite) for rank in everyone), "", "lower"),
        "wait_share": figure(sum(shares) / len(shares) if shares else 0.0, "", "lower"),
        "steps": figure(sum(int(rank.steps) for rank in everyone), "", "higher"),
    }


def figure(value: float | None, unit: str, better: str) -> dict[str, Any]:
    """One entry of the summary. ``better``: higher, lower, or empty for what the job has not declared."""
    return {"value": value, "unit": unit, "better": better}
