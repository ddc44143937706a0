"""Labelled images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """A training and a test set.

    ``x`` and ``test_x`` are float32 (N, C, H, W): each channel has mean 0 and standard deviation 1 over the training
    set. ``y`` and ``test_y`` are int64 (N,), in 0 .. ``classes`` - 1.
    """

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.x.shape
        return channels, height, width


def normalised(
    pixels: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    test_pixels: NDArray[np.uint8],
    test_labels: NDArray[np.uint8],
    classes: int,
) -> Images:
    """Raw pixels (N, C, H, W) and labels (N,) as :class:`Images`."""
    # From the histogram of the 256 values: exact, and no float copy of the images beside the one that is kept.
    channels = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(pixels, 1, 0)])
    values, share = np.arange(256), channels / channels.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt(share @ values**2 - mean**2)
    std[std == 0] = 1.0  # a channel that is the same everywhere becomes 0, not NaN
    offset, scale = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (mean, std))

    def floats(raw: NDArray[np.uint8]) -> Tensor:
        return torch.tensor(raw, dtype=torch.float32).sub_(offset).div_(scale)

    def integers(raw: NDArray[np.uint8]) -> Tensor:
        return torch.tensor(raw, dtype=torch.int64)

    return Images(floats(pixels), integers(labels), floats(test_pixels), integers(test_labels), classes)
