"""What one rank writes down while it runs: a line per step and event, and a trace if one is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpcasync.clock import Staleness
from hpcasync.run.metrics import Lines, Totals
from hpcasync.run.say import warn
from hpcasync.run.trace import Contribution, trace_file


class Notes:
    """``metrics.rank<r>.jsonl`` and, with ``traced``, ``trace.rank<r>.jsonl`` in the run's folder.

    Args:
        parameters: how many the replica has.
    """

    def __init__(self, folder: Path, rank: int, parameters: int, traced: bool) -> None:
        self._rank, self._parameters = rank, parameters
        self._lines = Lines(folder / f"metrics.rank{rank}.jsonl")
        self._trace = Lines(trace_file(folder, rank)) if traced else None
        self._folder, self._warned = folder, False

    def rewind(self, steps: int) -> None:
        """The run goes on after this many steps of this rank: what was written later is forgotten."""
        self._lines.rewind(steps, "step")
        if self._trace is not None:
            self._trace.rewind(steps, "clock")

    def step(self, totals: Totals, seconds: float, loss: float, staleness: Staleness) -> None:
        """A step has ended, and ``totals`` count it."""
        self._lines.add(
            {
                "step": totals.steps,
                "seconds": seconds,
                "loss": loss,
                "samples": totals.samples,
                "staleness": staleness.last,
                "waited": totals.waited_seconds,
            }
        )
        self._warn()

    def contribution(self, clock: int, samples: int, handed_in_seconds: float, staleness: Staleness) -> None:
        """What step ``clock``, the first being 1, handed in to the strategy."""
        if self._trace is not None:
            span = (0, self._parameters)
            made = Contribution(self._rank, clock, span, samples, handed_in_seconds, staleness.last)
            self._trace.add(made.entry())

    def event(self, steps: int, seconds: float, **what: Any) -> None:
        """Something between two steps: an evaluation, a checkpoint, a recovery."""
        self._lines.add({"step": steps, "seconds": seconds, **what})

    @property
    def lost(self) -> int:
        """How many lines could not be written."""
        return self._lines.lost + (self._trace.lost if self._trace is not None else 0)

    def flush(self) -> None:
        """Write what is buffered. Raises RunFailure where the folder cannot be written at all."""
        self._lines.flush()
        if self._trace is not None:
            self._trace.flush()
        self._warn()

    def _warn(self) -> None:
        """Say once that lines are lost: in the words of every rank, so that `hpcasync run` shows them once."""
        error = self._lines.error or (self._trace.error if self._trace is not None else None)
        if error is None or self._warned:
            return
        self._warned = True
        warn(f"{self._folder}: metrics cannot be written ({error.strerror}); the run goes on without them")
