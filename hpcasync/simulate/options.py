"""The options of ``hpcasync simulate``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from hpcasync.bench.rows_file import check_replaceable
from hpcasync.errors import UsageError
from hpcasync.laws import Law, Slow, parse_law
from hpcasync.simulate.csv_file import read_csv
from hpcasync.simulate.problems import Heterogeneous, Problem, Tridiagonal, logistic, regression
from hpcasync.simulate.trial import Setting
from hpcasync.strategies import parse_strategy

AUTO = "auto"


@dataclass(kw_only=True)
class Options:
    """What is simulated, and until when."""

    problem: Literal["tridiagonal", "logistic", "heterogeneous", "csv"] = "tridiagonal"
    """tridiagonal: the papers' quadratic, d = 50. logistic: l2-regularised, on generated data. heterogeneous: a quadratic
    per rank. csv: regression on --data."""
    ranks: Annotated[int, arg(metavar="N")] = 4
    """How many ranks; ten thousand are fine."""
    compute: Annotated[str, arg(metavar="LAW")] = "constant"
    """The seconds of a step: constant[:VALUE], sqrt (rank i takes sqrt(i), i = 1..N), exponential[:MEAN], pareto:SHAPE,
    transient:PROBABILITY:FACTOR or slow:RANK:FACTOR."""
    strategy: Annotated[tuple[str, ...], arg(metavar="NAME [K=V ...]")] = ("sync",)
    """The strategy and its hyperparameters, e.g. downpour pull=4 bound=8."""
    lr: Annotated[str, arg(metavar="X|auto")] = AUTO
    """The step size; auto takes that of the grid 2^(k/2) which reaches the tolerance first."""
    until: Annotated[float | None, arg(metavar="TOL", help_behavior_hint="")] = None
    """Stop when f - f* is at most TOL times what it was at the start (default: go on for --seconds)."""
    seconds: Annotated[float, arg(metavar="S")] = 10_000.0
    """Stop after so many virtual seconds."""
    data: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """For --problem csv: comma-separated numbers, the last column is the target. Two different targets make it logistic
    regression, more least squares."""
    batch_size: int = 32
    """Samples per gradient of logistic and csv, drawn at random; 0 takes them all."""
    noise: Annotated[float, arg(metavar="SIGMA")] = 0.0
    """Standard deviation of the noise in every element of a gradient of tridiagonal and heterogeneous."""
    momentum: float = 0.0
    """Momentum of the optimizer, SGD."""
    alpha: Annotated[float, arg(metavar="S")] = 0.0
    """Seconds per message."""
    beta: Annotated[float, arg(metavar="S")] = 0.0
    """Seconds per byte of a message."""
    seed: int = 0
    """Of compute times, noise, samples and generated data."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the results as rows to this file."""

    def setting(self) -> Setting:
        """What the options ask for.

        Raises:
            UsageError: one that cannot be used.
        """
        self._check()
        return Setting(
            problem=self._problem(),
            ranks=self.ranks,
            law=self._law(),
            choice=parse_strategy(self.strategy),
            until=self.until,
            seconds=self.seconds,
            alpha=self.alpha,
            beta=self.beta,
            momentum=self.momentum,
            seed=self.seed,
        )

    def rate(self) -> float | None:
        """The step size; None if it is to be found."""
        if self.lr == AUTO:
            if self.until is None:
                raise UsageError("--lr auto needs --until TOL: the best step size is that which is there first")
            return None
        try:
            rate = float(self.lr)
        except ValueError:
            rate = math.nan
        if not 0 < rate < math.inf:
            raise UsageError(f"--lr {self.lr}: it must be a positive number, or auto")
        return rate

    def _check(self) -> None:
        self._need("ranks", lambda value: value >= 1, "1 or more")
        self._need("seconds", lambda value: 0 < value < math.inf, "a positive number")
        self._need("batch_size", lambda value: value >= 0, "1 or more, or 0 for all samples")
        self._need("seed", lambda value: 0 <= value < 2**63, "0 or more, and below 2^63")
        for name in ("noise", "alpha", "beta"):
            self._need(name, lambda value: 0 <= value < math.inf, "0 or more, and finite")
        self._need("momentum", lambda value: 0 <= value < 1, "0 or more, and below 1")
        if self.until is not None:
            self._need("until", lambda value: 0 < value < 1, "above 0 and below 1")
        if (self.problem == "csv") != (self.data is not None):
            raise UsageError("--problem csv and --data FILE go together")
        if self.json is not None:
            check_replaceable(self.json)

    def _need(self, name: str, holds: Callable[[float], bool], wanted: str) -> None:
        value = getattr(self, name)
        if not holds(value):
            raise UsageError(f"--{name.replace('_', '-')} {value}: it must be {wanted}")

    def _problem(self) -> Problem:
        if self.data is not None:
            try:
                return regression(read_csv(self.data), self.batch_size)
            except UsageError as error:
                raise UsageError(f"--data {self.data}: {error}") from None
        if self.problem == "logistic":
            return logistic(self.batch_size, self.seed)
        if self.problem == "heterogeneous":
            return Heterogeneous(self.ranks, noise=self.noise, seed=self.seed)
        return Tridiagonal(noise=self.noise)

    def _law(self) -> Law:
        law = parse_law(self.compute)
        if isinstance(law, Slow) and law.rank >= self.ranks:
            raise UsageError(f"--compute {self.compute}: the ranks are 0 to {self.ranks - 1}")
        return law
