"""What the tests of one neuron at a time share: how a neuron is selected, and the strategy."""

from __future__ import annotations

import pytest
from torch import nn

from hpcasync.strategies.neuron import Neuron
from hpcasync.world import World
from tests.training import build

SELECTS = ["ready", "cyclic", "random", "greedy"]
every_select = pytest.mark.parametrize("select", SELECTS)


def neuron(words: str, world: World, model: nn.Module, lr: float = 1.0, momentum: float = 0.0) -> Neuron:
    strategy = build(f"neuron {words}", world, model, lr, momentum)
    assert isinstance(strategy, Neuron)
    return strategy
