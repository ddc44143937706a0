"""One trial: `hpcasync run` of the job in a process of its own, watched, and ended early where it is not worth it."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from hpcasync.errors import UsageError
from hpcasync.launch.boxes import EXPLANATION
from hpcasync.launch.execute import exit_code
from hpcasync.report.read import Evaluation, RunRecord, direction, read_run
from hpcasync.report.tail import Evaluations
from hpcasync.run.metrics import DECLARE
from hpcasync.sweep.curve import Curve, Reports
from hpcasync.sweep.folder import BEAT_SECONDS

POLL_SECONDS = 0.5
END_SECONDS = 60.0  # from the request to end to a checkpoint and the end
KILL_SECONDS = 10.0  # from an end without a checkpoint to none at all
_REFUSED = 2  # the exit code after a mistake of the user
_STOPPED = tuple(map(exit_code, (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)))

State = Literal["done", "missed", "diverged", "pruned", "failed", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        state: done; missed its target; diverged, evaluated to no number; pruned; failed; interrupted together with
            its worker.
        cost: what the sweep makes small: the seconds to the target, or the final metric, negated where it should be
            large. NaN unless done.
        metric, value, better: the job's primary metric, in the last evaluation, and which of its values are better.
        seconds, samples_per_second, staleness: the run's; NaN where it has no summary.
        code: what the run exited with.
        reason: why it failed.
    """

    state: State
    cost: float = math.nan
    metric: str = ""
    value: float = math.nan
    seconds: float = math.nan
    samples_per_second: float = math.nan
    staleness: float = math.nan
    code: int = 0
    reason: str = ""
    better: str = ""

    @property
    def refused(self) -> bool:
        """The job has refused its options."""
        return self.state == "failed" and self.code == _REFUSED


class Signals:
    """Remembers the first SIGINT, SIGTERM, SIGHUP or SIGUSR1 that the worker got, and asks the run for a clean end.

    The run is asked by SIGUSR1, which it may get several times: Slurm's scancel signals worker and run at once, and a
    second SIGTERM would end the ranks before their checkpoint. A second one that the worker gets is handed on as it is.
    """

    def __init__(self) -> None:
        self.received = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = False

    @contextmanager
    def listening(self) -> Iterator[Signals]:
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
        numbers += [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN)
        before = {number: signal.signal(number, self._take) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def reach(self, process: subprocess.Popen[bytes] | None) -> None:
        """Signals go to ``process`` from now on, also one that came while there was none."""
        self._process = process
        if process is not None and self.received and not self._asked:
            self._ask(process)

    def _take(self, number: int, frame: FrameType | None) -> None:
        again = self.received not in (0, signal.SIGUSR1)
        self.received = self.received or number
        if self._process is not None and again and number != signal.SIGUSR1:
            self._process.send_signal(number)
        elif self._process is not None:
            self._ask(self._process)

    def _ask(self, process: subprocess.Popen[bytes]) -> None:
        self._asked = True
        process.send_signal(signal.SIGUSR1)


def perform(
    argv: Sequence[str], folder: Path, log: Path, trial: Reports, beat: Callable[[], None], signals: Signals
) -> Outcome:
    """Run ``argv``, whose run folder is ``folder``, to its end; ``beat`` is called every few seconds until then."""
    watched = _Watched(folder, trial)
    try:
        with log.open("ab") as file:
            printed = file.tell()
            code, pruned = _run(argv, file, watched, beat, signals)
        watched.look()
    except UsageError as error:
        return Outcome("failed", code=_REFUSED, reason=str(error))
    if (folder / "DONE").exists():
        return _done(watched)
    if pruned:
        shutil.rmtree(folder / "ckpt", ignore_errors=True)  # it will not go on
        return _ended(watched, "diverged" if watched.curve and watched.curve.has_diverged else "pruned")
    if signals.received or code in _STOPPED:  # a signal may have come to the ranks alone
        stopped = exit_code(signals.received) if signals.received else code
        return dataclasses.replace(_ended(watched, "interrupted"), code=stopped)
    return Outcome("failed", code=code, reason=_reason(log, printed, code))


class _Watched:
    """The run's evaluations so far."""

    def __init__(self, folder: Path, trial: Reports) -> None:
        self._folder, self._trial = folder, trial
        self._evaluations = Evaluations(folder)
        self.curve: Curve | None = None  # once there is an evaluation

    def look(self) -> bool:
        """Read on; True if the trial should end here.

        Raises:
            UsageError: the job has not declared its metric.
        """
        ends = [self._take(evaluation) for evaluation in self._evaluations.new()]
        return any(ends)

    def record(self) -> RunRecord | None:
        """What the run says about itself, if it has got so far."""
        try:
            return read_run(self._folder, metrics=False)
        except UsageError:
            return None

    def _take(self, evaluation: Evaluation) -> bool:
        if self.curve is None:
            record = self.record()
            if record is None or not evaluation.values:
                return False
            metric = next(iter(evaluation.values))
            better = direction(record.document, metric)
            if not better:
                raise UsageError(f"sweep: the job does not declare whether {metric} should be high or low: {DECLARE}")
            limited = {"seconds", "target"} & {k for k, v in record.config.items() if v is not None}
            self.curve = Curve(self._trial, bool(limited), better)
        return self.curve.add(evaluation)


def _run(
    argv: Sequence[str], output: object, watched: _Watched, beat: Callable[[], None], signals: Signals
) -> tuple[int, bool]:
    """The exit code, and whether the run was ended because the trial was pruned."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=output,  # type: ignore[call-overload]
        stderr=subprocess.STDOUT,
        process_group=0,  # a Ctrl-C reaches it once, through us
    )
    pruned, beaten, asked = False, 0.0, None
    try:
        signals.reach(process)
        while True:
            try:
                return process.wait(POLL_SECONDS), pruned
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            if now - beaten >= BEAT_SECONDS:
                beat()
                beaten = now
            if asked is None and signals.received:
                asked = now
            elif asked is None and watched.look():
                process.send_signal(signal.SIGTERM)
                asked, pruned = now, True
            elif asked is not None and now - asked > END_SECONDS:
                _end(process)
    finally:
        signals.reach(None)
        if process.poll() is None:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(KILL_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _done(watched: _Watched) -> Outcome:
    record, curve = watched.record(), watched.curve
    if record is None or curve is None:
        return Outcome("failed", reason="the run is done, but its run.json or metrics cannot be read")
    if curve.has_diverged:
        return _ended(watched, "diverged")
    if record.config.get("target") is None:
        cost = curve.cost
    elif "seconds_to_target" in record.summary:
        cost = record.summary["seconds_to_target"]
    else:
        return _ended(watched, "missed")
    curve.end()
    return _ended(watched, "done", cost)


def _ended(watched: _Watched, state: State, cost: float = math.nan) -> Outcome:
    record, curve = watched.record(), watched.curve
    summary = record.summary if record else {}
    return Outcome(
        state,
        cost,
        metric=curve.metric if curve else "",
        value=curve.value if curve else math.nan,
        better=curve.better if curve else "",
        seconds=summary.get("seconds", math.nan),
        samples_per_second=summary.get("samples_per_second", math.nan),
        staleness=summary.get("staleness_mean", math.nan),
    )


def _reason(log: Path, offset: int, code: int) -> str:
    """What the run has said about its end, on one line."""
    lines = log.read_bytes()[offset:].decode("utf-8", errors="replace").splitlines()
    said = [line.removeprefix(EXPLANATION) for line in lines if line.startswith(EXPLANATION)]
    raised = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception"))]
    return (raised or said or [f"ended with exit code {code}"])[-1][:200]
