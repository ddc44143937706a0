"""Evaluate what a run would deliver now, while training goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from hpcasync.replica import Replica
from hpcasync.run.metrics import better
from hpcasync.strategies import Strategy
from hpcasync.strategies.guard import check_parameters

Evaluate = Callable[[nn.Module], dict[str, float]]
"""A model in evaluation mode, without gradients, to {metric: value}. The first metric is what --target is about."""


class Evaluation:
    """Evaluates ``strategy.result()``, with this rank's constants, in a copy of the model: the replica that trains is
    untouched."""

    def __init__(self, strategy: Strategy, evaluate: Evaluate, target: float | None) -> None:
        self._strategy = strategy
        self._evaluate = evaluate
        self._target = target
        self._copy = Replica(copy.deepcopy(strategy.replica.model))
        self.last: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Evaluate now; the metrics are kept in ``last``.

        Raises:
            RunFailure: the parameters are not finite.
        """
        self._copy.load_vector(self._strategy.result())
        self._copy.load_constants(self._strategy.replica.constants)
        check_parameters(pair.params for pair in self._copy.pairs)
        self._copy.model.eval()
        with torch.no_grad():
            self.last = {name: float(value) for name, value in self._evaluate(self._copy.model).items()}
        return self.last

    def target_reached(self) -> bool:
        """Has the last evaluation's first metric reached the target?"""
        if self._target is None or not self.last:
            return False
        name, value = next(iter(self.last.items()))
        return value >= self._target if better(name) == "higher" else value <= self._target
