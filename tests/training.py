"""Small training runs that the strategy tests share: a linear problem with known gradients, and handwritten digits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from hpcasync.replica import Replica
from hpcasync.strategies import Strategy, parse_strategy
from hpcasync.world import World

Loss = Callable[[nn.Module, int, int], Tensor]  # (model, rank, step) -> scalar


def build(words: str, world: World, model: nn.Module, lr: float = 1.0, momentum: float = 0.0) -> Strategy:
    replica = Replica(model)
    optimizer = torch.optim.SGD(replica.parameters(), lr=lr, momentum=momentum, fused=True)
    return parse_strategy(words.split()).build(replica, world, optimizer)


def train(strategy: Strategy, model: nn.Module, loss: Loss | None, steps: int, first: int = 0) -> None:
    """``steps`` steps of this rank, with the compute time of each charged to the world; no loss: zero gradients."""
    for step in range(first, first + steps):
        if loss:
            loss(model, strategy.world.rank, step).backward()
        strategy.world.computed(0.0)
        strategy.step()


class Vectors(nn.Module):
    """Parameters of the given shapes, all zeros."""

    def __init__(self, *shapes: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> None:
        super().__init__()
        for i, shape in enumerate(shapes):
            self.register_parameter(f"p{i}", nn.Parameter(torch.zeros(shape, dtype=dtypes[i % len(dtypes)])))


def gradient(rank: int, step: int, length: int) -> Tensor:
    """The gradient that :func:`linear` generates: small integers, so that sums are exact in float32."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randint(-8, 9, (length,), generator=generator).float()


def linear(model: nn.Module, rank: int, step: int) -> Tensor:
    """A loss whose gradient at any parameters is :func:`gradient`."""
    flat = torch.cat([p.flatten().float() for p in model.parameters()])
    return flat @ gradient(rank, step, flat.numel())


@cache
def digits() -> tuple[Tensor, Tensor]:
    """(1797, 64) float32 pixels in [0, 1] and (1797,) int64 labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images).float() / 16, torch.from_numpy(labels)


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def digits_loss(model: nn.Module, rank: int, step: int) -> Tensor:
    x, y = digits()
    batch = torch.randint(0, len(x), (32,), generator=torch.Generator().manual_seed(1000 * rank + step))
    return F.cross_entropy(model(x[batch]), y[batch])


def full_loss(strategy: Strategy, model: nn.Module) -> float:
    """The loss on all digits with what the strategy would deliver now; the model is left as it was."""
    mine = strategy.replica.vector()
    result = strategy.result()
    copy = classifier()
    Replica(copy).load_vector(result)
    assert torch.equal(strategy.replica.vector(), mine)
    x, y = digits()
    with torch.no_grad():
        return float(F.cross_entropy(copy(x), y))
