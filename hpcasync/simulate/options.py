"""The options of ``hpcasync simulate``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from hpcasync.bench.rows_file import check_rows
from hpcasync.errors import UsageError
from hpcasync.laws import Law, Slow, parse_law
from hpcasync.simulate.csv_file import read_csv
from hpcasync.simulate.measured import Measured, MeasuredSteps, read_measured
from hpcasync.simulate.problems import Heterogeneous, Problem, Tridiagonal, logistic, regression
from hpcasync.simulate.trial import Setting
from hpcasync.strategies import parse_strategy

AUTO = "auto"


@dataclass(kw_only=True)
class Options:
    """What is simulated, and until when."""

    problem: Literal["tridiagonal", "logistic", "heterogeneous", "csv"] = "tridiagonal"
    """tridiagonal: the papers' quadratic, d = 50. logistic: l2-regularised, generated data. heterogeneous: a quadratic
    per rank. csv: regression on --data."""
    ranks: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """How many ranks (default 4); ten thousand are fine."""
    ranks_per_node: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """So many consecutive ranks share a node (default: all of them), for the strategies that have two levels."""
    compute: Annotated[str | None, arg(metavar="LAW", help_behavior_hint="")] = None
    """The seconds of a step: constant[:VALUE] (the default, 1), sqrt (rank i takes sqrt(i), i = 1..N),
    exponential[:MEAN], pareto:SHAPE, transient:PROBABILITY:FACTOR or slow:RANK:FACTOR. constant flatters: all ranks
    hand in at the same moment, in random order."""
    strategy: Annotated[tuple[str, ...] | None, arg(metavar="NAME [K=V ...]", help_behavior_hint="")] = None
    """The strategy and its hyperparameters (default sync), e.g. downpour pull=4 bound=8."""
    run: Annotated[Path | None, arg(name="from", metavar="FOLDER", help_behavior_hint="")] = None
    """A measured run: its step times are the compute law, and its ranks, strategy, duration and network the defaults.
    Says samples per second too. A step includes the measured strategy's own work for the exchange; another --strategy's
    is left out, and one that does more of it comes out too fast."""
    lr: Annotated[str | None, arg(metavar="X|auto", help_behavior_hint="")] = None
    """The step size; auto takes that of the grid 2^(k/2) which reaches the tolerance first with this --seed; another
    may take several times as long (default: auto with --until, else 1/(L N) for N ranks)."""
    until: Annotated[float | None, arg(metavar="TOL", help_behavior_hint="")] = None
    """Stop when f - f* is at most TOL times what it was at the start (default: go on for --seconds)."""
    seconds: Annotated[float | None, arg(metavar="S", help_behavior_hint="")] = None
    """Stop after so many virtual seconds (default 10,000)."""
    data: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """For --problem csv: comma-separated numbers, the last column is the target. Two different targets make it logistic
    regression, more least squares."""
    batch_size: int = 32
    """Samples per gradient of logistic and csv, drawn at random; 0 takes them all."""
    noise: Annotated[float, arg(metavar="SIGMA")] = 0.0
    """Standard deviation of the noise in every element of a gradient of tridiagonal and heterogeneous."""
    momentum: float = 0.0
    """Momentum of the optimizer, SGD."""
    alpha: Annotated[float | None, arg(metavar="S", help_behavior_hint="")] = None
    """Seconds per message (default 0)."""
    beta: Annotated[float | None, arg(metavar="S", help_behavior_hint="")] = None
    """Seconds per byte of a message (default 0). With --from, messages weigh what they did in the measured run."""
    seed: int = 0
    """Of compute times, noise, samples and generated data."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the results as rows to this file."""

    def resolve(self) -> Measured | None:
        """Check every value, and fill in those that were not given. The measured run, if there is one.

        Raises:
            UsageError: a value that cannot be used.
        """
        self._check()
        measured = None if self.run is None else self._take_over(self.run)
        self.ranks = self.ranks or 4
        self.strategy = self.strategy or ("sync",)
        self.seconds = 10_000.0 if self.seconds is None else self.seconds
        self.alpha, self.beta = self.alpha or 0.0, self.beta or 0.0
        return measured

    def setting(self, measured: Measured | None) -> Setting:
        """What the resolved options ask for."""
        assert self.ranks and self.strategy and self.seconds and self.alpha is not None and self.beta is not None
        problem = self._problem(self.ranks)
        beta = self.beta
        if measured is not None and measured.parameter_bytes:
            beta *= measured.parameter_bytes / problem.start.nbytes
        return Setting(
            problem=problem,
            ranks=self.ranks,
            law=self._law(self.ranks) if measured is None else MeasuredSteps(measured.step_seconds, self.seed),
            choice=parse_strategy(self.strategy),
            until=self.until,
            seconds=self.seconds,
            alpha=self.alpha,
            beta=beta,
            momentum=self.momentum,
            seed=self.seed,
            ranks_per_node=self.ranks_per_node,
        )

    def rate(self, setting: Setting) -> float | None:
        """The step size; None if it is to be found."""
        text = self.lr or (AUTO if self.until is not None else str(1 / (setting.problem.smoothness * setting.ranks)))
        if text == AUTO:
            if self.until is None:
                raise UsageError("--lr auto needs --until TOL: the best step size is that which is there first")
            return None
        try:
            rate = float(text)
        except ValueError:
            rate = math.nan
        if not 0 < rate < math.inf:
            raise UsageError(f"--lr {text}: it must be a positive number, or auto")
        return rate

    def _take_over(self, folder: Path) -> Measured:
        if self.compute is not None:
            raise UsageError(f"--compute {self.compute}: --from says how long steps take; give one of the two")
        measured = read_measured(folder)
        self.ranks = self.ranks or measured.ranks
        self.strategy = self.strategy or measured.strategy
        self.seconds = measured.seconds if self.seconds is None and self.until is None else self.seconds
        self.alpha = measured.alpha if self.alpha is None else self.alpha
        self.beta = measured.beta if self.beta is None else self.beta
        return measured

    def _check(self) -> None:
        for name in ("ranks", "ranks_per_node"):
            self._need(name, lambda value: value >= 1, "1 or more")
        self._need("seconds", lambda value: 0 < value < math.inf, "a positive number")
        self._need("batch_size", lambda value: value >= 0, "1 or more, or 0 for all samples")
        self._need("seed", lambda value: 0 <= value < 2**63, "0 or more, and below 2^63")
        for name in ("noise", "alpha", "beta"):
            self._need(name, lambda value: 0 <= value < math.inf, "0 or more, and finite")
        self._need("momentum", lambda value: 0 <= value < 1, "0 or more, and below 1")
        self._need("until", lambda value: 0 < value < 1, "above 0 and below 1")
        if (self.problem == "csv") != (self.data is not None):
            raise UsageError("--problem csv and --data FILE go together")
        if self.json is not None:
            check_rows(self.json)

    def _need(self, name: str, holds: Callable[[float], bool], wanted: str) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise UsageError(f"--{name.replace('_', '-')} {value}: it must be {wanted}")

    def _problem(self, ranks: int) -> Problem:
        if self.data is not None:
            try:
                return regression(read_csv(self.data), self.batch_size)
            except UsageError as error:
                raise UsageError(f"--data {self.data}: {error}") from None
        if self.problem == "logistic":
            return logistic(self.batch_size, self.seed)
        if self.problem == "heterogeneous":
            return Heterogeneous(ranks, noise=self.noise, seed=self.seed)
        return Tridiagonal(noise=self.noise)

    def _law(self, ranks: int) -> Law:
        law = parse_law(self.compute or "constant")
        if isinstance(law, Slow) and law.rank >= ranks:
            raise UsageError(f"--compute {self.compute}: the ranks are 0 to {ranks - 1}")
        return law
