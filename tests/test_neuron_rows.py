"""The gradient of a few rows is what autograd makes of the whole weight, whatever the model does with it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hpcasync.replica import Replica
from hpcasync.strategies.neuron_rows import RowGradients


class Twice(nn.Module):
    """A layer used twice, whose weight is also used by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.tanh(self.layer(x))) + F.linear(x, self.layer.weight)


MODELS = {
    "linear": (lambda: nn.Linear(4, 5), (3, 4)),
    "one sample": (lambda: nn.Linear(4, 5), (4,)),
    "sequences": (lambda: nn.Linear(4, 5), (2, 3, 4)),
    "no bias": (lambda: nn.Linear(4, 5, bias=False), (3, 4)),
    "in place": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)), (3, 4)),
    "no bias, in place": (lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(inplace=True)), (3, 4)),
    "convolution": (lambda: nn.Conv2d(2, 5, 3, stride=2, padding=1, dilation=2), (3, 2, 9, 8)),
    "one image": (lambda: nn.Conv2d(2, 5, 3), (2, 6, 6)),
    "grouped": (lambda: nn.Conv2d(2, 6, 3, groups=2), (3, 2, 6, 6)),
    "padded": (lambda: nn.Conv2d(2, 5, 3, padding="same", padding_mode="reflect"), (3, 2, 6, 6)),
    "twice and by hand": (Twice, (3, 4)),
}


@pytest.mark.parametrize("first", [True, False], ids=["first layer", "later layer"])
@pytest.mark.parametrize("name", MODELS)
def test_rows_are_those_of_the_whole_gradient(name, first):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=not first)

    def loss() -> torch.Tensor:
        weight = next(model.parameters())
        return model(x).square().sum() + weight.pow(3).sum()  # the penalty's gradient goes where it always goes

    wanted = torch.autograd.grad(loss(), list(model.parameters()))
    replica = Replica(model)
    rows = RowGradients(replica)
    replica.pairs[0].forget_grads()
    tensor = replica.pairs[0].tensors[0]
    piece = nn.Parameter(tensor.detach()[1:3].clone())
    rows.compute_only({tensor: (slice(1, 3), piece)})
    loss().backward()
    got = tensor.grad[1:3] + (0 if piece.grad is None else piece.grad)
    assert torch.allclose(got, wanted[0][1:3], rtol=1e-12)
    assert tensor.requires_grad
    if name not in ("grouped", "padded"):  # of which autograd computes the whole
        assert piece.grad is not None
    for other, gradient in zip(replica.pairs[0].tensors[1:], wanted[1:], strict=True):
        if other.grad is not None:
            assert torch.allclose(other.grad, gradient, rtol=1e-12)
        else:
            assert other.dim() == 2  # a weight of which no row was asked for

    rows.compute_all()
    replica.pairs[0].forget_grads()
    loss().backward()
    for tensor, gradient in zip(replica.pairs[0].tensors, wanted, strict=True):
        assert torch.allclose(tensor.grad, gradient, rtol=1e-12)


def test_what_is_not_asked_for_is_not_computed():
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False))
    replica = Replica(model)
    replica.pairs[0].forget_grads()
    RowGradients(replica).compute_only({})
    model(torch.ones(3, 4)).sum().backward()  # which has something to go back to all the same
    assert model[0].weight.grad is None
    assert model[2].weight.grad is None


def test_a_copy_of_the_model_is_left_alone():
    model = nn.Linear(4, 5)
    rows = RowGradients(Replica(model))
    rows.compute_only({})
    other = copy.deepcopy(model)
    other(torch.ones(3, 4)).sum().backward()
    assert torch.equal(other.weight.grad, torch.full((5, 4), 3.0))


def test_a_failed_forward_leaves_the_weight_trainable():
    model = nn.Linear(4, 5)
    RowGradients(Replica(model)).compute_only({})
    with pytest.raises(RuntimeError, match="shapes"):
        model(torch.ones(3, 7))
    assert model.weight.requires_grad
    with torch.no_grad():
        assert not model(torch.ones(3, 4)).requires_grad


def test_a_second_watch_takes_the_place_of_the_first():
    model = nn.Linear(4, 5)
    replica = Replica(model)
    replica.pairs[0].forget_grads()
    RowGradients(replica).compute_only({})
    RowGradients(replica)
    model(torch.ones(3, 4)).sum().backward()
    assert torch.equal(model.weight.grad, torch.full((5, 4), 3.0))
