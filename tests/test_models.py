"""Shapes and sizes of the models, in closed form."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from hpcasync.models import CNN, MLP

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("widths", [(64, 10), (64, 32, 10), (784, 256, 128, 10)])
def test_mlp_has_a_weight_per_pair_and_a_bias_per_output(widths):
    model = MLP(*widths)
    assert count(model) == sum((a + 1) * b for a, b in pairwise(widths))
    assert model(torch.randn(5, widths[0])).shape == (5, widths[-1])


def test_mlp_flattens_images():
    model, x = MLP(64, 16, 10), torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model(x), model(x.flatten(1)), rtol=0, atol=0)


def test_mlp_gives_logits_of_either_sign():
    logits = MLP(64, 16, 10)(torch.randn(50, 64))
    assert logits.min() < 0 < logits.max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("a", "b", "c", "classes"), [(32, 64, 128, 10), (4, 6, 9, 3)])
def test_cnn_takes_the_image_sizes_of_the_jobs(shape, a, b, c, classes):
    model = CNN(shape, classes, widths=(a, b), hidden=c)
    channels, height, width = shape
    convolutions = (9 * channels + 1) * a + (9 * a + 1) * b
    linear = (b * (height // 4) * (width // 4) + 1) * c + (c + 1) * classes
    assert count(model) == convolutions + linear
    assert model(torch.randn(2, *shape)).shape == (2, classes)
