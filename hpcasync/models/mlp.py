"""A multilayer perceptron."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them: ``MLP(64, 128, 10)`` takes (N, 64) or anything that flattens to it,
    such as (N, 1, 8, 8), and gives logits (N, 10).

    A layer from a to b values has (a + 1) b parameters.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        layers = [layer for before, after in pairwise(widths) for layer in (nn.Linear(before, after), nn.ReLU())]
        self.layers = nn.Sequential(nn.Flatten(), *layers[:-1])  # no ReLU after the last one

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits
