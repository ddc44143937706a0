"""One worker of a sweep: it takes trials and runs them until none is left."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from rich.console import Console

from hpcasync.errors import UsageError
from hpcasync.launch import environment
from hpcasync.launch.execute import exit_code
from hpcasync.launch.words import value_of
from hpcasync.report.table import significant
from hpcasync.sweep import plot, table
from hpcasync.sweep.folder import Folder
from hpcasync.sweep.space import Space, words
from hpcasync.sweep.study import Asked, Study, best, importances
from hpcasync.sweep.trial import Outcome, Signals, perform


class Worker:
    """One process's part in the sweep in ``path``, which it makes or joins.

    Args:
        options: the job's, the same for all trials.
        ranks: of each trial; None: as `hpcasync run` has it.
        launch: more options of `hpcasync run`, which may differ from worker to worker.

    Raises:
        UsageError: ``path`` holds something else.
    """

    def __init__(
        self, path: Path, space: Space, job: str, options: Sequence[str], ranks: int | None, launch: Sequence[str] = ()
    ) -> None:
        self._folder = Folder(path)
        self._job, self._options, self._ranks, self._launch = job, list(options), ranks, list(launch)
        self._folder.enter({"sweep": space.document, "job": job, "options": self._options, "ranks": ranks})
        self._simulated = value_of(options, "--world") == "sim"
        self._study = Study(self._folder, space, ranks or _default_ranks(options))

    def work(self, signals: Signals) -> int:
        """Run trials until none is left: 0, or 1 if one has failed; or until a signal stops one: its exit code.

        Raises:
            UsageError: the job has refused its options in every trial so far.
        """
        failed = False
        while not signals.received and (asked := self._study.ask()) is not None:
            try:
                outcome = self._perform(asked, signals)
            except UpdateFinishedTrialError:  # this worker was asleep for so long that it was taken for dead
                print(f"trial {asked.trial.number}  was taken over by another worker", flush=True)
                continue
            print(f"trial {asked.trial.number}  {table.said(asked.parameters)}  {self._said(outcome)}", flush=True)
            if outcome.refused and all(trial.state == TrialState.FAIL for trial in self._study.ended):
                log = self._folder.log(asked.name)
                raise UsageError(f"{outcome.reason.removeprefix('error: ')} (in {log})")
            if outcome.state == "interrupted":
                return outcome.code
            failed |= outcome.state == "failed"
        return exit_code(signals.received) or int(failed)

    def show(self, console: Console) -> None:
        """Print the best trials; if no other worker is left, write the sweep's table and plots."""
        trials = self._study.trials
        path = self._folder.path
        console.print(table.terminal(trials))
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        if running:
            print(f"{running} running elsewhere; the same command once more takes over those whose worker has died")
        else:
            (path / "table.md").write_text(table.markdown(trials), encoding="utf-8")
            plot.pareto(trials, path, self._simulated)
            plot.importance(importances(trials), path)
        print(f"results: {path}")

    def _perform(self, asked: Asked, signals: Signals) -> Outcome:
        folder, log = self._folder.run(asked.name), self._folder.log(asked.name)
        beat = partial(self._folder.beat, asked.name)
        outcome = perform(self._argv(asked), folder, log, asked.trial, beat, signals)
        self._study.tell(asked, outcome)
        return outcome

    def _argv(self, asked: Asked) -> list[str]:
        run = [*self._launch, *(["-n", str(self._ranks)] if self._ranks is not None else [])]
        folder = ["--results", str(self._folder.path), "--name", asked.name] + ["--resume"] * asked.resumes
        program = [sys.executable, "-m", "hpcasync.cli", "run", *run, self._job]
        return [*program, *self._options, *words(asked.parameters), *folder]

    def _said(self, outcome: Outcome) -> str:
        first = best(self._study.trials)
        ahead = f"  best: trial {first.number}" if first is not None else ""
        if outcome.state == "failed":
            return f"failed: {outcome.reason}{ahead}"
        value = f"{outcome.metric} {outcome.value:.4f} after {significant(outcome.seconds)} s" * bool(outcome.metric)
        return f"{table.STATES[outcome.state]}  {value}{ahead}"


def _default_ranks(options: Sequence[str]) -> int:
    """As `hpcasync run` has it."""
    simulated = value_of(options, "--ranks")
    if simulated is not None and simulated.isdigit():
        return max(1, int(simulated))
    return sum(group.tasks for group in environment.allocation()) or environment.cores()
