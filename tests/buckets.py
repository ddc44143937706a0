"""What the tests of as_ready and in_backward share: a network of odd shapes, optimizers, caps, trained runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcasync.replica import Replica
from hpcasync.strategies import Strategy, parse_strategy
from hpcasync.world import World
from tests.training import Loss, train

CAPS = (1, 5000, 1 << 20)  # a bucket per tensor, some of several tensors, one bucket
OPTIMIZERS = {
    "momentum": lambda p, fused: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1, fused=fused),
    "adam": lambda p, fused: torch.optim.Adam(p, lr=0.01, fused=fused),
    "adamw": lambda p, fused: torch.optim.AdamW(p, lr=0.01, fused=fused),
}
every_verb = pytest.mark.parametrize("name", ["as_ready", "in_backward"])
every_cap = pytest.mark.parametrize("cap", CAPS)


def make(words: str, world: World, model: nn.Module, optimizer: str = "momentum", fused: bool = False) -> Strategy:
    """Not fused unless told: fused kernels round an element by whether it is among a tensor's last few."""
    replica = Replica(model)
    return parse_strategy(words.split()).build(replica, world, OPTIMIZERS[optimizer](replica.parameters(), fused))


def network() -> nn.Module:
    """38,311 parameters of odd shapes: enough for MPIWorld to reduce where they lie, in the order of the ranks."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(101, 213), nn.ReLU(), nn.Linear(213, 77), nn.Tanh(), nn.Linear(77, 1), nn.Flatten(0))


def network_loss(model: nn.Module, rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    x = torch.randn(8, 101, generator=generator)
    return F.mse_loss(model(x), x.sum(dim=1))


def trained(words: str, world: World, model: nn.Module, loss: Loss, steps: int, optimizer: str = "momentum") -> Tensor:
    strategy = make(words, world, model, optimizer)
    train(strategy, model, loss, steps)
    strategy.drain()
    return strategy.result()
