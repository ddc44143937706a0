"""Evaluate what a run would deliver now, while training goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.run.metrics import Metric
from hpcasync.strategies import Strategy
from hpcasync.strategies.finite import check_parameters

Evaluate = Callable[[nn.Module], dict[str, float]]
"""A model in evaluation mode, without gradients, to {metric: value}."""


class Evaluation:
    """Evaluates ``strategy.result()``, with this rank's constants, in a copy of the model: the replica that trains is
    untouched.

    Args:
        metrics: those that the job has declared; the first is what ``target`` is about.
    """

    def __init__(self, strategy: Strategy, evaluate: Evaluate, metrics: Sequence[Metric], target: float | None) -> None:
        self._strategy = strategy
        self._evaluate = evaluate
        self._primary = metrics[0] if metrics else None
        self._target = target
        self._copy = Replica(copy.deepcopy(strategy.replica.model))
        self.last: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Evaluate now; the metrics are kept in ``last``, the primary one first.

        Raises:
            RunFailure: the parameters are not finite.
            UsageError: the primary metric is not among them.
        """
        self._copy.load_vector(self._strategy.result())
        self._copy.load_constants(self._strategy.replica.constants)
        check_parameters(pair.params for pair in self._copy.pairs)
        self._copy.model.eval()
        with torch.no_grad():
            values = {name: float(value) for name, value in self._evaluate(self._copy.model).items()}
        self.last = self._primary_first(values)
        return self.last

    def target_reached(self) -> bool:
        """Has the primary metric of the last evaluation reached the target?"""
        if self._target is None or self._primary is None or not self.last:
            return False
        value = self.last[self._primary.name]
        return value >= self._target if self._primary.better == "higher" else value <= self._target

    def _primary_first(self, values: dict[str, float]) -> dict[str, float]:
        if self._primary is None:
            return values
        name = self._primary.name
        if name not in values:
            told = ", ".join(values) or "nothing"
            raise UsageError(f"evaluate() has returned {told}, but run.start() declares the metric {name!r}")
        return {name: values[name]} | values
