"""The options that every job takes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

from hpcasync.errors import UsageError
from hpcasync.faults import parse_kill, parse_slow
from hpcasync.laws import parse_law
from hpcasync.run.config import plain
from hpcasync.run.trace import Contribution, read_traces
from hpcasync.strategies import parse_strategy
from hpcasync.strategies.finite import NonFinite


@dataclass(kw_only=True)
class Options:
    """What every job takes. A job adds its own by inheriting, and may set other defaults."""

    strategy: Annotated[tuple[str, ...], arg(metavar="NAME [K=V ...]")] = ("sync",)
    """The strategy and its hyperparameters, e.g. downpour pull=4 bound=8."""
    compress: Annotated[str | None, arg(metavar="CODEC", help_behavior_hint="")] = None
    """Send less: fp16, bf16, int8, sign, topk:SHARE or powersgd:RANK, under error feedback; dpsgd: moniqua:THETA."""
    world: Literal["mpi", "sim", "horovod"] = "mpi"
    """Real ranks over MPI, simulated ranks on a virtual clock, or Horovod's collectives."""
    ranks: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """How many simulated ranks (--world sim only; default 4). mpirun -n says how many real ones."""
    data: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder with the data; default: what the job brings along."""
    results: Annotated[Path, arg(metavar="DIR")] = Path("results")
    """Folder in which the run's own folder is made."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Name of the run's folder; default: job, strategy and time."""
    resume: Annotated[bool, FlagCreatePairsOff] = False
    """Go on with the run --name from its last checkpoint; begin it if there is none of this name."""
    restart: Annotated[bool, FlagCreatePairsOff] = False
    """With --resume: begin the run again where it has checkpoints, but none that is whole."""
    checkpoint_every: Annotated[float | None, arg(metavar="S", help_behavior_hint="")] = None
    """Write a checkpoint every so many seconds, besides that when a signal stops the run (default: none)."""
    seed: int = 0
    """For initialisation, shuffling and injected faults."""
    epochs: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Stop a rank after this many passes over its data (default 10, unless --steps or --seconds is given)."""
    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Stop a rank after this many steps."""
    seconds: Annotated[float | None, arg(metavar="S", help_behavior_hint="")] = None
    """Stop after this many seconds (virtual ones with --world sim)."""
    target: Annotated[float | None, arg(metavar="VALUE", help_behavior_hint="")] = None
    """Stop all ranks when an evaluation's primary metric, as the job declares it, reaches this value."""
    threads: int = 1
    """Compute threads per rank."""
    lr: float = 0.1
    """Learning rate."""
    batch_size: int = 32
    """Samples per step and rank."""
    slow: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="RANK:FACTOR")] = ()
    """Make a rank slower by a factor, e.g. 3:4."""
    jitter: Annotated[str | None, arg(metavar="LAW", help_behavior_hint="")] = None
    """Multiply the time of every step by a draw of this law, e.g. exponential."""
    kill: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="RANK:STEP")] = ()
    """Have a rank die in a step, e.g. 2:20: under `hpcasync run` with Open MPI, or simulated, the others go on."""
    step_seconds: Annotated[float, arg(metavar="S")] = 0.0
    """Least duration of a step before --slow and --jitter (0 with --world sim means 1)."""
    non_finite: NonFinite = "drop"
    """A loss or gradient with a NaN or an infinity: leave it out and count it, stop the run, or do not look."""
    stall_seconds: Annotated[float, arg(metavar="S")] = 60.0
    """Name the rank that holds up the others when nothing has moved for so long, and end the run after ten times as
    long; 0: never."""
    trace: Annotated[bool, FlagCreatePairsOff] = False
    """Write down what every rank hands in and when, for `hpcasync replay`."""
    replay: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Simulate the ranks of this traced run: each hands in when it did then. Used by `hpcasync replay`."""
    evaluate_every: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Evaluate after every so many steps of rank 0 (default: once per its epoch)."""

    def resolve(self) -> None:
        """Check every value, and fill in those that depend on others.

        Raises:
            UsageError: a value that cannot be used.
        """
        if self.replay is not None:
            self._follow(self.replay)
        parse_strategy(self.strategy, self.compress)
        parse_slow(self.slow)
        parse_kill(self.kill)
        if self.jitter is not None:
            parse_law(self.jitter)
        for name in ("ranks", "epochs", "steps", "threads", "batch_size", "evaluate_every"):
            self._need(name, lambda value: value >= 1, "1 or more")
        for name in ("seconds", "lr", "checkpoint_every"):
            self._need(name, lambda value: 0 < value < math.inf, "a positive number")
        self._need("stall_seconds", lambda value: 0 <= value < math.inf, "0 or more")
        self._need("step_seconds", lambda value: 0 <= value < math.inf, "0 or more")
        self._need("seed", lambda value: 0 <= value < 2**63, "0 or more, and below 2^63")
        self._need("target", math.isfinite, "a finite number")
        self._need("name", _is_folder_name, "a folder's name without a slash")
        if self.resume and self.name is None:
            raise UsageError("--resume: which run? Give its --name, too")
        if self.restart and not self.resume:
            raise UsageError("--restart: it says what --resume may do; without --resume every run begins anew")
        if self.world == "sim":
            self.ranks = self.ranks or 4
        elif self.ranks is not None:
            raise UsageError(
                f"--ranks {self.ranks} is for --world sim; `hpcasync run -n {self.ranks}` starts real ranks"
            )
        if self.replay is None and self.epochs is None and self.steps is None and self.seconds is None:
            self.epochs = 10
        self.config()

    @cached_property
    def traces(self) -> list[list[Contribution]] | None:
        """What the ranks of the run that is replayed handed in; None if none is."""
        return None if self.replay is None else read_traces(self.replay)

    def of_rank(self, rank: int) -> Self:
        """The options of one rank: in a replay, each makes as many steps as it made in the run."""
        return self if self.traces is None else dataclasses.replace(self, steps=len(self.traces[rank]))

    def of_every_rank(self) -> dict[str, Any]:
        """{name: value} of those that must be the same on every rank; threads and data are a machine's own."""
        own = {"threads", "data"} | ({"steps"} if self.replay is not None else set())
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in own}

    def _follow(self, folder: Path) -> None:
        """What decided when a step or the run ended, the trace decides now."""
        self.world, self.ranks, self.results, self.name = "sim", len(read_traces(folder)), folder / "replays", None
        self.slow, self.kill, self.jitter = (), (), None
        self.epochs = self.steps = self.seconds = self.target = None

    def config(self) -> dict[str, Any]:
        """Every option as JSON holds it. Raises UsageError if it cannot hold one."""
        return {field.name: plain(getattr(self, field.name), field.name) for field in dataclasses.fields(self)}

    def _need(self, name: str, holds: Any, wanted: str) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise UsageError(f"--{name.replace('_', '-')} {value}: it must be {wanted}")


def _is_folder_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name
