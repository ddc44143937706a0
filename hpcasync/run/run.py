"""The life of one job on one rank: its folder, its steps, its evaluations, its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.launch.execute import exit_code
from hpcasync.replica import Replica
from hpcasync.run.agreement import check_alike, describe
from hpcasync.run.checkpoint import describe as describe_checkpoint
from hpcasync.run.checkpoint import write
from hpcasync.run.evaluation import Evaluate
from hpcasync.run.feed import Feed, samples_in
from hpcasync.run.gather import broadcast_text, first_failure
from hpcasync.run.leader import Leader
from hpcasync.run.metrics import DECLARE, Metric, Totals, declared
from hpcasync.run.notes import Notes
from hpcasync.run.options import Options
from hpcasync.run.ping import ping
from hpcasync.run.provenance import Origin, everyones_hosts
from hpcasync.run.record import Record, has_failed, writing
from hpcasync.run.recovery import recover, share_optimizer_state
from hpcasync.run.resume import Opening, Saved, capture, find_run, take_folder
from hpcasync.run.say import warn
from hpcasync.run.stop import Signals, Stop
from hpcasync.run.watchdog import Watchdog
from hpcasync.run.worlds import KINDS
from hpcasync.strategies import Strategy, adopt, parse_strategy
from hpcasync.strategies.finite import check_parameters
from hpcasync.world import RankFailed, World

Batch = TypeVar("Batch")


class AlreadyDone(Exception):  # noqa: N818 -- not an error
    """--resume of a run that is done: nothing is left to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(f"{folder} is done: nothing to do")


class PeerFailed(Exception):  # noqa: N818 -- named like RankFailed
    """Another rank could not start and has said why; ``code`` is what this rank exits with too."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"a peer has failed with code {code}")


class Run:
    """One rank's part in a run.

    ``start`` once, then ``for batch in run.steps(loader)`` with ``run.step(loss)`` at the end of each step. Until
    ``start`` a job must not call a collective verb of ``run.world``: there the ranks tell each other that all is well.

    When a rank dies after ``start``, the others go on: with a new ``world``, a new ``strategy`` that begins with the
    parameters and optimizer state of the first of them, and the data dealt out anew. The step that a death
    interrupts is lost, and the epoch begins again.

    Attributes:
        rank, size: as numbered at the start. ``world.rank`` is this rank's number among the living.
    """

    def __init__(self, world: World, options: Options, origin: Origin, signals: Signals) -> None:
        self.world, self.options, self.rank, self.size = world, options, world.rank, world.size
        self.folder: Path | None = None  # from start() on
        self._origin, self._signals = origin, signals
        self._totals = Totals()
        self._open = ExitStack()
        self._batch: Any = None
        self._feed = Feed(world.rank, options.epochs)
        self._leader: Leader | None = None
        self._watchdog: Watchdog | None = None
        self._members = list(range(world.size))  # the living, as numbered at the start
        self._code: int | None = None  # once the run is concluded
        self._is_ours = False  # what happens now: within step(), finish() and the like
        torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)

    def rank_seed(self, epoch: int) -> int:
        """A seed of this rank's own for this epoch, below 2^63, the same in every run with the same --seed."""
        words = np.random.SeedSequence((self.options.seed, self.rank, epoch)).generate_state(1, np.uint64)
        return int(words[0] >> np.uint64(1))

    def start(
        self,
        replica: Replica,
        optimizer: torch.optim.Optimizer,
        evaluate: Evaluate,
        metric: Metric | Sequence[Metric] = (),
    ) -> None:
        """Collective. Make the run's folder and the strategy; the clock of the run starts.

        Args:
            evaluate: called on rank 0 with a copy of the model that holds ``strategy.result()``, in evaluation mode and
                without gradients; returns {metric: value}.
            metric: which of them are to be judged, and which way; the first is what --target is about.

        Raises:
            UsageError: the ranks do not train alike, the folder exists, the strategy cannot be built, or --target has
                no metric; nothing has been overwritten.
        """
        if not isinstance(replica, Replica):
            raise UsageError(f"run.start({type(replica).__name__}, ...): it takes Replica(model)")
        self._metrics = declared(metric)
        if self.options.target is not None and not self._metrics:
            raise UsageError(
                f"--target {self.options.target:g}: the job does not declare the metric that is meant; it should say: "
                f"{DECLARE}"
            )
        self.agree(0)
        self._choice = parse_strategy(self.options.strategy, self.options.compress)
        self._trained, self._evaluate_by = (replica, optimizer), evaluate
        check_alike(self.world, describe(self._choice, replica, optimizer, self.options.of_every_rank()))
        opening = self._find()
        saved = Saved.read(opening.checkpoint, self.rank, self.size, replica) if opening.checkpoint else None
        self.agree(0)
        if saved is not None and not saved.whole:
            adopt(saved.state["strategy"], replica)
            self._feed.deal(self.rank, self.size)
        self._build(self.world)
        with suppress(AttributeError):  # an optimizer of the job's own may have no hooks
            optimizer.register_step_pre_hook(self._check_stepper)
        self.folder = self._take_folder(opening)
        self._notes = Notes(self.folder, self.rank, sum(len(pair.params) for pair in replica.pairs), self.options.trace)
        self._open.callback(self._notes.flush)
        self._watch(self.folder)
        self._started, self._waited_before = self.world.now(), self.world.waited
        with self._recovering():
            if saved is not None:
                self._totals, self._feed.standing = saved.restore(self.strategy)
                self._notes.rewind(self._totals.steps)
            self.world.barrier()
        self._started = self.world.now() - self._feed.standing.seconds
        self._waited_before = self.world.waited - self._totals.waited_seconds

    def steps(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of ``loader``, epoch after epoch, until the run ends for this rank.

        ``loader.set_epoch(epoch)`` is called before each epoch if there is such a method, and
        ``loader.deal(rank, size)`` after a death: this rank's new number, and how many are left.

        Raises:
            UsageError: the loader has no batch.
        """
        for batch in self._feed.batches(loader, self._end_epoch):
            if self._ended():
                return
            self._batch = batch
            self._began = self.world.now()
            yield batch

    def step(self, loss: Tensor, samples: int | None = None) -> None:
        """After ``loss.backward()``: tell the World how long that took, let the strategy step, keep the numbers.

        Args:
            samples: how many this step was about; by default the length of the first tensor or array in the batch.

        Raises:
            UsageError: ``samples`` is negative, or the batch does not tell.
        """
        computed = self.world.now() - self._began
        if samples is not None and samples < 0:
            raise UsageError(f"run.step(loss, samples={samples}): it must be 0 or more")
        self._samples = samples_in(self._batch) if samples is None else samples
        with self._recovering():
            self.world.computed(computed)
            self._totals.compute_seconds += self.world.now() - self._began
            handed_in_seconds = self._seconds()
            value = float(loss.detach())
            self.strategy.step(value)
            self._note_step(value)
            self._notes.contribution(self._totals.steps, self._samples, handed_in_seconds, self.strategy.staleness)
            every = self.options.evaluate_every
            if every is not None and self._totals.steps % every == 0:
                self._evaluate()

    def finish(self) -> int:
        """Collective. Drain the strategy, evaluate what the run delivers, complete run.json. Returns the exit code."""
        if self.folder is None:
            raise UsageError(f"{self._origin.job.name}: train() has returned without run.start()")
        self._check_steps()
        self._totals.wall_seconds = self._seconds()
        while True:
            with self._recovering():
                if self._code is None:
                    self._code = self._conclude()
                self.world.close()
                if self._watchdog is not None:
                    self._watchdog.stop()
                return self._code

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

    def _find(self) -> Opening:
        """Collective. What there is to go on with."""
        opening = find_run(self.options, self.size, self._origin.job.stem) if self.rank == 0 else Opening()
        self.agree(0)
        opening = Opening.from_text(broadcast_text(self.world, opening.to_text()))
        if opening.folder is not None and opening.done:
            raise AlreadyDone(opening.folder)
        return opening

    def _take_folder(self, opening: Opening) -> Path:
        """Collective. The run's folder, in which a leading rank keeps run.json from now on."""
        hosts = everyones_hosts(self.world, self._origin.world)
        measured = {
            "network": None if self._origin.world == "sim" else ping(self.world),
            "parameter_bytes": sum(pair.params.nbytes for pair in self._trained[0].pairs),
        }
        folder = Path()
        if self.rank == 0:
            folder = take_folder(opening, self.options, f"{self._origin.job.stem}-{self._choice.name}").resolve()
            if opening.checkpoint:
                self._lead(Record.resume(folder, describe_checkpoint(opening.checkpoint)[0]))
            else:
                entries = self._origin.entries(self.options, self._choice, self.size, hosts) | measured
                entries["metrics"] = [dataclasses.asdict(metric) for metric in self._metrics]
                self._lead(Record.create(folder, entries))
        self.agree(0)
        return Path(broadcast_text(self.world, str(folder)))

    def _watch(self, folder: Path) -> None:
        """Have this rank looked after, if it is a real one and others may wait for it."""
        seconds = self.options.stall_seconds
        if seconds and self.size > 1 and self._origin.world != "sim":
            abort = KINDS[self._origin.world].abort
            steps, members = (lambda: self._totals.steps), (lambda: self._members)
            self._watchdog = Watchdog(folder, self.rank, members, steps, seconds, abort)
            self._open.callback(self._watchdog.stop)

    def _seconds(self) -> float:
        return self.world.now() - self._started

    def _count_contributions(self) -> None:
        staleness, totals = self.strategy.staleness, self._totals
        totals.dropped = self.strategy.dropped
        if self.strategy.finite_check.dropped > totals.non_finite == 0:
            warn(f"rank {self.rank}: a loss or gradient is not finite in step {totals.steps}; it is left out")
        totals.non_finite = self.strategy.finite_check.dropped
        totals.staleness_count, totals.staleness_max = staleness.count, staleness.max
        totals.staleness_sum = staleness.mean * staleness.count

    def _note_step(self, loss: float) -> None:
        totals = self._totals
        totals.steps += 1
        totals.samples += self._samples
        totals.waited_seconds = self.world.waited - self._waited_before
        self._count_contributions()
        self._notes.step(totals, self._seconds(), loss, self.strategy.staleness)
        if self._leader is not None:
            self._leader.progress.step(totals, self._feed.standing.epoch, self._seconds(), loss)

    def _evaluate(self, drained: bool = False) -> None:
        """If this rank leads: evaluate, and stop all at the target. ``drained``: no further step will be made."""
        if self._leader is None:
            return
        seconds = self._seconds()
        values, reached = self._leader.evaluate(self._totals, None if drained else self._feed.standing.epoch, seconds)
        self._notes.event(self._totals.steps, seconds, evaluation=values)
        if reached:
            self._stop.tell_all()

    def _check_stepper(self, *_: object) -> None:
        """Before each step of the optimizer."""
        if not self._is_ours and not self.strategy.sends_in_backward:
            raise UsageError("optimizer.step() is part of run.step(loss): take it out of the loop")

    def _check_steps(self) -> None:
        """After an epoch, and at the end."""
        if self._batch is not None and not self._totals.steps:
            raise UsageError(f"{self._origin.job.name}: its loop never calls run.step(loss), so nothing is trained")

    def _end_epoch(self) -> None:
        self._check_steps()
        if self.options.evaluate_every is None:
            with self._recovering():
                self._evaluate()

    def _ended(self) -> bool:
        """True if this rank makes no further step. Writes the checkpoints that are due before the next."""
        with self._recovering():
            while not self._stop.reached(self._totals.steps, self._seconds()):
                if not self._stop.pauses(self._totals.steps, self._seconds()):
                    return False
                self._come_to_rest(ended=False)
            return True
        return False

    def _come_to_rest(self, ended: bool) -> bool:
        """Collective. Nothing is in flight any more. True if all ranks have ``ended``; else a checkpoint has been
        written, and the strategy is ready to go on."""
        self.strategy.drain()
        self._count_contributions()
        told = torch.tensor([not ended, self._totals.steps if self.world.rank == 0 else 0], dtype=torch.int64)
        self.world.allreduce(told)
        going_on, step = told.tolist()
        if not going_on:
            return True
        began = self._seconds()
        self._notes.flush()
        self._stop.go_on()
        state = self._save(step, began)
        self.strategy.load_state_dict(state["strategy"])
        self._notes.event(self._totals.steps, self._seconds(), checkpoint_seconds=self._seconds() - began)
        return False

    def _conclude(self) -> int:
        """Collective. The end of the run, without leaving the World; the exit code."""
        self._totals.interrupted = self._signals.received
        self._stop.leave()
        while not self._come_to_rest(ended=True):
            continue  # the others have more steps to make
        if not self._totals.interrupted:
            self._evaluate(drained=True)
        self._notes.flush()
        self._totals.lost_lines = self._notes.lost
        everyone = self._totals.gather(self.world)
        interrupted = max(int(rank.interrupted) for rank in everyone)
        if interrupted:
            self._save(int(everyone[0].steps), self._totals.wall_seconds)
        if self._leader is not None:
            self._leader.conclude(everyone, interrupted)
        return exit_code(interrupted) or int(any(rank.lost_lines for rank in everyone))

    def _save(self, step: int, seconds: float) -> dict[str, Any]:
        """Collective. Write a checkpoint, named by the leading rank's ``step``; what is in it of this rank."""
        assert self.folder is not None
        standing = dataclasses.replace(self._feed.standing, seconds=seconds)
        check_parameters(pair.params for pair in self.strategy.replica.pairs)
        state = capture(self.strategy, self._totals, standing)
        with writing(self.folder):
            write(self.world, self.folder, step, state, self._members)
        return state

    def _build(self, world: World) -> None:
        """Collective. The strategy and the way to stop."""
        self.strategy: Strategy = self._choice.build(self._trained[0], world, self._trained[1])
        self.strategy.finite_check.mode = self.options.non_finite
        self._stop = Stop(world, self.options, self._signals, self.strategy.ahead)

    def _lead(self, record: Record) -> None:
        self._leader = Leader(record, self.options, self.strategy, self._evaluate_by, self._metrics, self.rank)
        self._open.callback(self._leader.progress.close)

    @contextmanager
    def _recovering(self) -> Iterator[None]:
        """Around what calls the World after start(): a death cuts it short, and then all is in place to go on.

        Raises:
            PeerFailed: the dead rank has failed and said why; nobody goes on.
        """
        outer, self._is_ours = self._is_ours, True
        try:
            yield
        except RankFailed:
            assert self.folder is not None
            if self._code is None and has_failed(self.folder):
                raise PeerFailed(1) from None
            began, before = self.world.now(), self._members
            self.world, self._members = recover(self.world, partial(self._rebuild, self._stop.told))
            if self._code is None:
                self._go_on([rank for rank in before if rank not in self._members], began)
        finally:
            self._is_ours = outer

    def _rebuild(self, stopped: bool, world: World) -> list[int]:
        """Collective. Who is here, as numbered at the start. If none has concluded the run, it goes on in ``world``."""
        table = torch.zeros(world.size, 2, dtype=torch.int64)
        table[world.rank] = torch.tensor([self.rank, -1 if self._code is None else self._code])
        world.allreduce(table.view(-1))
        members: list[int] = table[:, 0].tolist()
        codes: list[int] = table[:, 1].tolist()
        if max(codes) >= 0:
            self._code = max(codes)
            return members
        (replica, optimizer), before = self._trained, self.strategy
        replica.reset_grads()
        self._build(world)
        share_optimizer_state(world, optimizer)
        self.strategy.staleness, self.strategy.dropped = before.staleness, before.dropped
        self.strategy.finite_check = before.finite_check
        if stopped:
            self._stop.tell_all()
        return members

    def _go_on(self, dead: list[int], began: float) -> None:
        """This rank's notes about a recovery that ``began`` then; the first of the living leads."""
        assert self.folder is not None
        seconds = self._seconds()
        recovery = {"dead": dead, "survivors": self._members, "recovery_seconds": self.world.now() - began}
        self._notes.event(self._totals.steps, seconds, recovered=recovery)
        self._feed.deal(self.world.rank, self.world.size)
        if self.world.rank > 0:
            return
        if self._leader is None:
            self._lead(Record.take_over(self.folder))
        else:
            self._leader.follow(self.strategy)
        assert self._leader is not None
        self._leader.lose(dead, self._members, seconds)
