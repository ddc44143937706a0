"""The life of one job on one rank: its folder, its steps, its evaluations, its end."""

from __future__ import annotations

import itertools
import json
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.launch import environment
from hpcasync.launch.boxes import EXPLANATION
from hpcasync.replica import Replica
from hpcasync.run import provenance
from hpcasync.run.evaluation import Evaluate, Evaluation
from hpcasync.run.gather import broadcast_text, first_failure, gather_text
from hpcasync.run.metrics import Lines, Totals, better, metric, summarize
from hpcasync.run.options import Options
from hpcasync.run.progress import Progress, closing
from hpcasync.run.record import Record, create_folder, mark_failed
from hpcasync.run.stop import Signals, Stop
from hpcasync.strategies import Choice, Strategy, parse_strategy
from hpcasync.world import World

Batch = TypeVar("Batch")


class PeerFailed(Exception):  # noqa: N818 -- named like RankFailed
    """Another rank could not start and has said why; ``code`` is what this rank exits with too."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"a peer has failed with code {code}")


@dataclass(frozen=True)
class Origin:
    """Where a run comes from: the job's file, the kind of world, its library, and how the process was called."""

    job: Path
    world: str
    library: str
    argv: Sequence[str]


class Run:
    """One rank's part in a run.

    ``start`` once, then ``for batch in run.steps(loader)`` with ``run.step(loss)`` at the end of each step. Until
    ``start`` a job must not call a collective verb of ``run.world``: there the ranks tell each other that all is well.
    """

    def __init__(self, world: World, options: Options, origin: Origin, signals: Signals) -> None:
        self.world, self.options, self.rank, self.size = world, options, world.rank, world.size
        self.folder: Path | None = None  # from start() on
        self._origin, self._signals = origin, signals
        self._totals = Totals()
        self._open = ExitStack()
        self._epoch = 0
        torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)

    def rank_seed(self, epoch: int) -> int:
        """A seed of this rank's own for this epoch, below 2^63, the same in every run with the same --seed."""
        words = np.random.SeedSequence((self.options.seed, self.rank, epoch)).generate_state(1, np.uint64)
        return int(words[0] >> np.uint64(1))

    def start(self, replica: Replica, optimizer: torch.optim.Optimizer, evaluate: Evaluate) -> None:
        """Collective. Make the run's folder and the strategy; the clock of the run starts.

        Args:
            evaluate: called on rank 0 with a copy of the model that holds ``strategy.result()``, in evaluation mode and
                without gradients; returns {metric: value}, the first of which --target is about.

        Raises:
            UsageError: the folder exists, or the strategy cannot be built; nothing has been overwritten.
        """
        self.agree(0)
        choice = parse_strategy(self.options.strategy)
        self.strategy: Strategy = choice.build(replica, self.world, optimizer)
        self._stop = Stop(self.world, self.options, self._signals)
        hosts = self._hosts()
        folder = Path()
        if self.rank == 0:
            self._evaluation = Evaluation(self.strategy, evaluate, self.options.target)
            folder = create_folder(self.options.results, self.options.name, f"{self._origin.job.stem}-{choice.name}")
            self._record = Record(folder, self._entries(choice, hosts))
            self._progress = Progress(" ".join(self.options.strategy), environment.in_terminal())
            self._open.callback(self._progress.close)
        self.agree(0)
        self.folder = Path(broadcast_text(self.world, str(folder.resolve())))
        self._lines = Lines(self.folder / f"metrics.rank{self.rank}.jsonl")
        self._open.callback(self._lines.flush)
        self._seconds_to_target: float | None = None
        self.world.barrier()
        self._started = self.world.now()
        self._waited_before = self.world.waited

    def steps(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of ``loader``, epoch after epoch, until the run ends for this rank.

        ``loader.set_epoch(epoch)`` is called before each epoch if there is such a method.

        Raises:
            UsageError: the loader has no batch.
        """
        limit = self.options.epochs
        for epoch in itertools.count() if limit is None else range(limit):
            self._epoch = epoch
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
            before = self._totals.steps
            for batch in loader:
                if self._stop.reached(self._totals.steps, self._seconds()):
                    return
                self._samples = _count(batch)
                self._began = self.world.now()
                yield batch
            if self._totals.steps == before:
                raise UsageError(f"rank {self.rank} has no batch: fewer samples in its shard than --batch-size?")
            if self.rank == 0 and self.options.evaluate_every is None:
                self._evaluate()

    def step(self, loss: Tensor) -> None:
        """After ``loss.backward()``: tell the World how long that took, let the strategy step, keep the numbers."""
        self.world.computed(self.world.now() - self._began)
        totals = self._totals
        totals.compute_seconds += self.world.now() - self._began
        self.strategy.step()
        totals.steps += 1
        totals.samples += self._samples
        totals.waited_seconds = self.world.waited - self._waited_before
        self._count_staleness()
        value = float(loss.detach())
        self._lines.add(
            {
                "step": totals.steps,
                "seconds": self._seconds(),
                "loss": value,
                "samples": totals.samples,
                "staleness": self.strategy.staleness.last,
                "waited": totals.waited_seconds,
            }
        )
        if self.rank == 0:
            self._progress.step(totals, self._epoch, self._seconds(), value)
            every = self.options.evaluate_every
            if every is not None and totals.steps % every == 0:
                self._evaluate()

    def finish(self) -> int:
        """Collective. Drain the strategy, evaluate what the run delivers, complete run.json. Returns the exit code."""
        if self.folder is None:
            raise UsageError(f"{self._origin.job.name}: train() has returned without run.start()")
        totals = self._totals
        totals.wall_seconds = self._seconds()
        totals.interrupted = self._signals.received
        self.strategy.drain()
        self._count_staleness()
        if self.rank == 0 and not totals.interrupted:
            self._evaluate()
        self._lines.flush()
        everyone = totals.gather(self.world)
        interrupted = max(int(rank.interrupted) for rank in everyone)
        if self.rank == 0:
            self._conclude(everyone, interrupted)
        return 128 + interrupted if interrupted else 0

    def close(self) -> None:
        """Write what is buffered and give the terminal back; for a run that has failed."""
        self._open.close()

    def agree(self, code: int) -> bool:
        """Collective, while starting: this rank is well (0), or will exit with ``code``. True: it shall say why.

        Raises:
            PeerFailed: this rank is well and another is not.
        """
        rank, first = first_failure(self.world, code)
        if first and not code:
            raise PeerFailed(first)
        return rank == self.rank

    def _seconds(self) -> float:
        return self.world.now() - self._started

    def _count_staleness(self) -> None:
        staleness, totals = self.strategy.staleness, self._totals
        totals.staleness_count, totals.staleness_max = staleness.count, staleness.max
        totals.staleness_sum = staleness.mean * staleness.count

    def _evaluate(self) -> None:
        evaluation = self._evaluation.run()
        seconds = self._seconds()
        self._lines.add({"step": self._totals.steps, "seconds": seconds, "evaluation": evaluation})
        self._progress.evaluated(self._totals, self._epoch, seconds, evaluation)
        if self._seconds_to_target is None and self._evaluation.target_reached():
            self._seconds_to_target = seconds
            self._stop.tell_all()

    def _hosts(self) -> list[dict[str, Any]]:
        """Every rank's place; simulated ranks all have this process's."""
        mine = environment.host(self.rank)
        if self._origin.world == "sim":
            return [mine]
        return [json.loads(text) for text in gather_text(self.world, json.dumps(mine))]

    def _entries(self, choice: Choice, hosts: list[dict[str, Any]]) -> dict[str, Any]:
        config, origin = self.options.config(), self._origin
        return {
            "job": origin.job.stem,
            "strategy": {"name": choice.name, "options": dict(choice.options)},
            "world": {
                "kind": origin.world,
                "size": self.size,
                "library": origin.library,
                "launcher": environment.launched_by(),
            },
            "config": config,
            "config_hash": provenance.config_hash(config),
            "argv": list(origin.argv),
            "git": provenance.git(origin.job.resolve().parent),
            "packages": provenance.packages(),
            "hosts": hosts,
            "seed": self.options.seed,
            "environment": environment.variables(),
            "slurm": environment.slurm(),
        }

    def _conclude(self, everyone: list[Totals], interrupted: int) -> None:
        assert self.folder is not None
        last = self._evaluation.last
        summary = {name: metric(value, "", better(name)) for name, value in last.items()} | summarize(everyone)
        if self.options.target is not None:
            summary["seconds_to_target"] = metric(self._seconds_to_target, "s", "lower")
        if interrupted:
            reason = f"stopped by {signal.Signals(interrupted).name}"
            mark_failed(self.folder, self.rank, reason, "")
            print(f"{EXPLANATION}{reason}", file=sys.stderr, flush=True)
            self._record.finish("failed", summary)
        else:
            reason = "done"
            self._record.finish("done", summary)
        self._progress.end(f"{closing(summary)}  {reason}: {self.folder}")


def _count(batch: Any) -> int:
    """Samples in a batch: the length of its first tensor."""
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return int(batch.shape[0])
