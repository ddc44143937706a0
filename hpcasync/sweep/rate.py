"""The learning rate to begin with: as long a step as sync's, and less under staleness.

Where n ranks' updates add up, as in hogwild, an n-th of the rate that suits synchronous SGD makes as long a step; that
is the first trial of such strategies. The others average, and their first trial has sync's rate. It measures the
staleness s, and a second trial has that rate divided by 1 + s, for stale gradients bear less: Zhang et al. 2016
("Staleness-aware Async-SGD for Distributed Deep Learning", https://arxiv.org/abs/1511.05950, eq. 6). To those that add
up their rule says nothing new, for s is about n - 1 there.
"""

from __future__ import annotations

from hpcasync.strategies import ADDING
from hpcasync.sweep.space import RATE, STRATEGY, Choice, Parameters, Space


def pilots(space: Space, ranks: int) -> list[tuple[Parameters, str]]:
    """What is fixed in the first trials, a learning rate for every strategy; and in words where it comes from."""
    if space.sync_rate is None:
        return []
    plain: Parameters = {RATE: _within(space, space.sync_rate)}
    fraction: Parameters = {RATE: _within(space, space.sync_rate / ranks)}
    if not space.strategies:
        return [(plain, "sync's rate")]
    return [
        ({**fraction, STRATEGY: name}, f"sync's rate / {ranks} ranks")
        if name in ADDING
        else ({**plain, STRATEGY: name}, "sync's rate")
        for name in space.strategies
    ]


def reduced(space: Space, strategy: object, staleness: float) -> float | None:
    """The rate of the second trial, after one that has shown a mean staleness s >= 0; None if there is to be none."""
    if space.sync_rate is None or strategy in ADDING:
        return None
    return _within(space, space.sync_rate / (1 + staleness))


def _within(space: Space, rate: float) -> float:
    """The nearest rate that is searched."""
    rates = space.options[RATE]
    if isinstance(rates, Choice):
        return min((float(value) for value in rates.values), key=lambda value: abs(value - rate))
    return min(max(rate, rates.low), rates.high)
