"""What a measured run tells about its ranks and its network, so that a simulation can ask about other runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcasync.errors import UsageError
from hpcasync.report.read import Metrics, RunRecord, read_run

_LEAST_SECONDS = 1e-9
_LEAST_STEPS = 2


class MeasuredSteps:
    """A compute law: the steps of a run, drawn again in random order.

    A rank's step lasted from the end of the one before to its own end, less what the rank waited: computing, loading
    data, evaluating, and its own part in the exchange. Rank r draws from measured rank r mod n. Ranks 0 to n - 1 draw
    from one place of their runs at a time, and so do n to 2n - 1, from another: what slowed all ranks of the machine
    down at once does so again.
    """

    def __init__(self, seconds: list[NDArray[np.float64]], seed: int) -> None:
        self._seconds, self._seed = seconds, seed
        self._places: list[_Places] = []  # one per copy of the measured ranks

    def draw(self, rng: np.random.Generator, rank: int, step: int) -> float:
        copy, original = divmod(rank, len(self._seconds))
        while len(self._places) <= copy:
            self._places.append(_Places((self._seed, len(self._places))))
        steps = self._seconds[original]
        return float(steps[int(self._places[copy].of(step) * len(steps))])


class _Places:
    """Random numbers in [0, 1), one per step, the same whoever asks first."""

    def __init__(self, seed: tuple[int, int]) -> None:
        self._rng = np.random.default_rng(seed)
        self._drawn: list[float] = []

    def of(self, step: int) -> float:
        while len(self._drawn) <= step:
            self._drawn.extend(self._rng.random(256).tolist())
        return self._drawn[step]


@dataclass(frozen=True)
class Measured:
    """A run that was measured.

    Attributes:
        strategy: its name and hyperparameters, as on the command line.
        seconds: how long the run took.
        batch_size: samples per step.
        parameter_bytes: of the model; None if the run has not said.
        alpha, beta: seconds per message and per byte, 0 if the run has not said.
        samples_per_second: of all ranks.
    """

    name: str
    ranks: int
    strategy: tuple[str, ...]
    seconds: float
    step_seconds: list[NDArray[np.float64]]
    batch_size: int
    parameter_bytes: int | None
    alpha: float
    beta: float
    samples_per_second: float


def read_measured(folder: Path) -> Measured:
    """Read a run's folder.

    Raises:
        UsageError: it is not one, the run is not done, it lost a rank, or a rank made too few steps.
    """
    run = read_run(folder)
    if run.status != "done":
        raise UsageError(f"--from {folder}: the run is {run.status}; one that is done is needed")
    if run.document.get("failures"):
        raise UsageError(f"--from {folder}: the run lost a rank; one that kept all is needed")
    if len(run.ranks) != run.size:
        raise UsageError(f"--from {folder}: metrics of {len(run.ranks)} ranks where there were {run.size}")
    network, samples = run.document.get("network") or {}, _samples_per_step(run)
    return Measured(
        name=run.name,
        ranks=run.size,
        strategy=(run.strategy, *(f"{name}={value}" for name, value in run.options.items())),
        seconds=_figure(folder, run.summary, "seconds"),
        step_seconds=[_busy_seconds(folder, metrics) for metrics in run.ranks],
        batch_size=samples,
        parameter_bytes=run.document.get("parameter_bytes"),
        alpha=float(network.get("alpha_seconds", 0.0)),
        beta=float(network.get("beta_seconds_per_byte", 0.0)),
        samples_per_second=_figure(folder, run.summary, "samples_per_second"),
    )


def _busy_seconds(folder: Path, metrics: Metrics) -> NDArray[np.float64]:
    """(steps,) what each step took, without waiting."""
    ended, waited = metrics.columns["seconds"], metrics.columns["waited"]
    known = np.isfinite(ended) & np.isfinite(waited)
    if np.count_nonzero(known) < _LEAST_STEPS:
        raise UsageError(f"--from {folder}: rank {metrics.rank} has made fewer than {_LEAST_STEPS} steps")
    busy = np.diff(ended[known] - waited[known], prepend=0.0)
    return np.maximum(busy, _LEAST_SECONDS)


def _samples_per_step(run: RunRecord) -> int:
    counts = run.ranks[0].columns["samples"]
    return round(float(counts[-1]) / len(counts)) if len(counts) else 0


def _figure(folder: Path, summary: dict[str, Any], name: str) -> float:
    value = summary.get(name)
    if value is None or not 0 < value < math.inf:
        raise UsageError(f"--from {folder}: its summary has no {name}")
    return float(value)
