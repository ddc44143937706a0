"""What the ranks train in a benchmark: models of known size, on random samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpcasync.models import CNN, MLP

CLASSES = 10


def _sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, fused=True)


def _adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4, fused=True)


@dataclass(frozen=True)
class Workload:
    """A model, the shape of one of its samples, the samples per step and rank, and an optimizer."""

    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = _sgd

    def samples(self) -> tuple[Tensor, Tensor]:
        """One batch: x (batch, *shape), y (batch,). Always the same: loading data is not what is measured."""
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(self.batch, *self.shape, generator=generator)
        return x, torch.randint(CLASSES, (self.batch,), generator=generator)


def _cnn() -> nn.Module:
    # (9 + 1) * 32 + (9 * 32 + 1) * 64 + (64 * 7 * 7 + 1) * 312 + 313 * 10 = 1,000,690 parameters
    return CNN((1, 28, 28), CLASSES, widths=(32, 64), hidden=312)


WORKLOADS = {
    # 1001 * 1000 + 1001 * 10 = 1,011,010 parameters, which take 1 or 2 ms to compute with
    "mlp 1 M": Workload(lambda: MLP(1000, 1000, CLASSES), (1000,), batch=8),
    # A few milliseconds, so that four ranks that also sleep fit on two cores.
    "cnn 1 M": Workload(_cnn, (1, 28, 28), batch=8),
    # Long enough a step to be bound by computing, whatever is exchanged.
    "cnn 1 M, 64 samples": Workload(_cnn, (1, 28, 28), batch=64),
    # 785 * 2048 + 2049 * 2432 + 2433 * 10 = 6,615,178 parameters
    "mlp 6.6 M": Workload(lambda: MLP(784, 2048, 2432, CLASSES), (784,), batch=64, optimizer=_adamw),
    # 65 * 128 + 129 * 10 = 9,610 parameters
    "mlp 10 k": Workload(lambda: MLP(64, 128, CLASSES), (64,), batch=8),
}
