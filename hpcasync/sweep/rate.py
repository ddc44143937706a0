"""The learning rate to begin with under staleness.

A rate that suits synchronous SGD is too large for stale gradients: Zhang et al. 2016 ("Staleness-aware Async-SGD for
Distributed Deep Learning", https://arxiv.org/abs/1511.05950, eq. 6) divide it by the staleness. Here a first trial of
every strategy trains at sync's rate and measures the staleness, and a second one at the rate that follows from it.
"""

from __future__ import annotations

from hpcasync.sweep.space import RATE, STRATEGY, Choice, Parameters, Space


def pilots(space: Space) -> list[Parameters]:
    """What is fixed in the first trials: sync's learning rate, once for every strategy."""
    if space.sync_rate is None:
        return []
    strategies: list[Parameters] = [{STRATEGY: name} for name in space.strategies] or [{}]
    return [{RATE: _within(space, space.sync_rate), **strategy} for strategy in strategies]


def reduced(space: Space, staleness: float) -> float:
    """sync's rate γ under a mean staleness s ≥ 0: γ / (1 + s), which leaves it as it is where nothing is stale."""
    assert space.sync_rate is not None
    return _within(space, space.sync_rate / (1 + staleness))


def _within(space: Space, rate: float) -> float:
    """The nearest rate that is searched."""
    rates = space.options[RATE]
    if isinstance(rates, Choice):
        return min((float(value) for value in rates.values), key=lambda value: abs(value - rate))
    return min(max(rate, rates.low), rates.high)
