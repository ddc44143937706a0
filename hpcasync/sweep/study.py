"""The trials of a sweep, in Optuna's journal: which comes next, and what became of each.

Workers share nothing but the sweep's folder. Whatever one of them decides from what is in the journal, it decides and
writes down under the folder's lock, so that no trial is given twice and none is lost.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from hpcasync.sweep import rate
from hpcasync.sweep.folder import Folder
from hpcasync.sweep.space import RATE, STRATEGY, Parameters, Space
from hpcasync.sweep.trial import Outcome

NAME = "sweep"  # of the study, whatever its folder is called
ATTEMPTS = 3  # of a trial whose worker dies: perhaps it is the trial that kills it
LEAST_DONE = 5  # trials, for importances to mean something
_STATES = {"done": TrialState.COMPLETE, "failed": TrialState.FAIL, "interrupted": TrialState.FAIL}  # else: PRUNED

# What a trial carries. AGAIN: the number of the trial that it repeats. PILOT: it measures the staleness.
FOLDER, OUTCOME, AGAIN, ATTEMPT, PILOT, RULE = "folder", "outcome", "again", "attempt", "pilot", "rule"


@dataclass(frozen=True)
class Asked:
    """A trial that this worker shall run.

    Attributes:
        name: of its run folder.
        parameters: what was drawn.
        resumes: the run folder may hold a checkpoint of a worker that was stopped.
    """

    trial: optuna.Trial
    name: str
    parameters: Parameters
    resumes: bool


class Study:
    """The sweep in ``folder``, of ``space``: made if there is none. Each trial has ``ranks`` ranks."""

    def __init__(self, folder: Folder, space: Space, ranks: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._folder, self._space = folder, space
        path = str(folder.journal)
        storage = JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
        with folder.lock():
            if NAME not in optuna.get_all_study_names(storage):
                optuna.create_study(storage=storage, study_name=NAME)
            self._study = optuna.load_study(storage=storage, study_name=NAME, pruner=optuna.pruners.MedianPruner())
            if not self._study.get_trials(deepcopy=False):
                self._enqueue_first(ranks)

    @property
    def trials(self) -> list[FrozenTrial]:
        """Every trial so far, without those that a later one repeats."""
        trials = self._study.get_trials(deepcopy=False)
        repeated = {trial.user_attrs.get(AGAIN) for trial in trials}
        return [trial for trial in trials if trial.number not in repeated]

    @property
    def ended(self) -> list[FrozenTrial]:
        """Those of :attr:`trials` that have ended."""
        return [trial for trial in self.trials if trial.state.is_finished()]

    def ask(self) -> Asked | None:
        """The next trial for this worker; None when all have been given."""
        with self._folder.lock():
            self._take_over_lost()
            trials = self.trials
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            if not waiting and len(trials) >= self._budget():
                return None
            self._study.sampler = self._sampler(len(trials))
            trial = self._study.ask()
            resumed = trial.user_attrs.get(FOLDER)
            name = resumed or f"trial-{trial.number:04d}"
            trial.set_user_attr(FOLDER, name)
            self._folder.beat(name)
            return Asked(trial, name, self._space.draw(trial), resumed is not None)

    def tell(self, asked: Asked, outcome: Outcome) -> None:
        """Write down what became of a trial; one that was interrupted will be given again.

        Raises:
            optuna.exceptions.UpdateFinishedTrialError: another worker has taken it over.
        """
        with self._folder.lock():
            asked.trial.set_user_attr(OUTCOME, {k: _plain(v) for k, v in dataclasses.asdict(outcome).items()})
            state = _STATES.get(outcome.state, TrialState.PRUNED)
            self._study.tell(asked.trial, outcome.cost if state == TrialState.COMPLETE else None, state)
            frozen = self._study.get_trials(deepcopy=False)[asked.trial.number]
            if outcome.state == "interrupted":
                self._again(frozen, {FOLDER: asked.name, ATTEMPT: frozen.user_attrs.get(ATTEMPT, 1)})
            elif frozen.user_attrs.get(PILOT) and outcome.staleness > 0 and len(self.trials) < self._budget():
                self._enqueue_reduced(frozen, outcome.staleness)

    def _budget(self) -> int:
        return self._space.trials or len(self._space.combinations())

    def _enqueue_first(self, ranks: int) -> None:
        if self._space.trials is None:
            for parameters in self._space.combinations():
                self._study.enqueue_trial(parameters)
        for parameters, rule in rate.pilots(self._space, ranks)[: self._space.trials]:
            self._study.enqueue_trial(parameters, {PILOT: True, RULE: rule})

    def _enqueue_reduced(self, pilot: FrozenTrial, staleness: float) -> None:
        reduced = rate.reduced(self._space, pilot.params.get(STRATEGY), staleness)
        if reduced not in (None, pilot.params[RATE]):
            said = f"sync's rate / (1 + {staleness:.3g})"
            self._study.enqueue_trial(pilot.params | {RATE: reduced}, {RULE: said})

    def _take_over_lost(self) -> None:
        """Give the trials of workers that have died to others."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            name = trial.user_attrs.get(FOLDER)
            if name is not None and not self._folder.is_lost(name):
                continue
            self._study.tell(trial.number, state=TrialState.FAIL)
            attempt = trial.user_attrs.get(ATTEMPT, 1)
            if attempt < ATTEMPTS:
                # Its run may live on without its worker: the next one gets a folder of its own.
                self._again(trial, {ATTEMPT: attempt + 1})

    def _again(self, trial: FrozenTrial, attributes: dict[str, Any]) -> None:
        kept = {name: trial.user_attrs[name] for name in (PILOT, RULE) if name in trial.user_attrs}
        self._study.enqueue_trial(trial.params, kept | attributes | {AGAIN: trial.number})

    def _sampler(self, count: int) -> optuna.samplers.BaseSampler:
        """Seeded by what came before: one worker alone draws the same trials every time, two never the same one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(seed=(self._space.seed * 1_000_003 + count) % 2**32, constant_liar=True)


def importances(trials: Sequence[FrozenTrial]) -> dict[str, dict[str, float]]:
    """{"all trials" or a strategy: {parameter: its share of the cost's variance}}, where enough trials are done.

    By fANOVA (Hutter et al. 2014, https://proceedings.mlr.press/v32/hutter14.html) over the parameters that the trials
    have in common: a strategy's own are compared among its trials.
    """
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    names = sorted({str(trial.params[STRATEGY]) for trial in done if STRATEGY in trial.params})
    groups = {"all trials": done}
    if len(names) > 1:
        groups |= {name: [trial for trial in done if trial.params[STRATEGY] == name] for name in names}
    found = {name: _importances(members) for name, members in groups.items()}
    return {name: shares for name, shares in found.items() if len(shares) > 1}


def _importances(done: Sequence[FrozenTrial]) -> dict[str, float]:
    common = set.intersection(*(set(trial.params) for trial in done)) if done else set()
    varied = sorted(name for name in common if len({trial.params[name] for trial in done}) > 1)
    if len(done) < LEAST_DONE or not varied or len({trial.value for trial in done}) < 2:
        return {}
    study = optuna.create_study()
    study.add_trials(done)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied)
    return {name.rpartition(".")[2]: float(share) for name, share in found.items()}


def outcome(trial: FrozenTrial) -> dict[str, Any]:
    """What :meth:`Study.tell` has kept; empty for a trial that has not ended."""
    found: dict[str, Any] = trial.user_attrs.get(OUTCOME, {})
    return found


def best(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The one with the least cost."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return min(done, key=lambda trial: trial.value if trial.value is not None else math.inf, default=None)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
