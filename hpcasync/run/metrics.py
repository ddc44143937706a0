"""What a run measures: one JSON line per step and rank, and the summary over all ranks."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcasync.json_file import finite
from hpcasync.world import World

FLUSH_SECONDS = 1.0


class Lines:
    """A file of JSON lines that only grows. Lines are buffered, and written whole at least once a second of steps."""

    def __init__(self, path: Path) -> None:
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
        # Opened each time: thousands of simulated ranks need no thousands of file descriptors.
        with self._path.open("a") as file:
            file.write("".join(self._buffer))
        self._buffer.clear()
        self._flushed = time.monotonic()


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
        "seconds": metric(wall, "s", "lower"),
        "samples_per_second": metric(rate, "1/s", "higher"),
        "ideal_share": metric(rate / ideal if ideal else None, "", "higher"),
        "staleness_mean": metric(staleness / contributions if contributions else 0.0, "", "lower"),
        "staleness_max": metric(max(int(rank.staleness_max) for rank in everyone), "", "lower"),
        "dropped": metric(sum(int(rank.dropped) for rank in everyone), "", "lower"),
        "non_finite": metric(sum(int(rank.non_finite) for rank in everyone), "", "lower"),
        "wait_share": metric(sum(shares) / len(shares) if shares else 0.0, "", "lower"),
        "steps": metric(sum(int(rank.steps) for rank in everyone), "", "higher"),
    }


def metric(value: float | None, unit: str, better: str) -> dict[str, Any]:
    """One entry of the summary."""
    return {"value": value, "unit": unit, "better": better}


def better(name: str) -> str:
    """Which way a job's metric gets better: accuracies rise, losses and errors fall."""
    return "higher" if "accuracy" in name else "lower"
