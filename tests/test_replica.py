"""A model laid flat: what is a view of what, and what the corners mean."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hpcasync.errors import UsageError
from hpcasync.replica import Replica, Span
from tests.training import Vectors

shapes = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=6)


@given(shapes)
def test_spans_tile_the_vector_in_order(shapes):
    replica = Replica(Vectors(*shapes))
    edges = [edge for span in replica.spans for edge in (span.start, span.stop)]
    assert edges == sorted(edges)
    assert edges[0] == 0
    assert edges[-1] == replica.params.numel() == sum(torch.Size(shape).numel() for shape in shapes)
    assert [span.shape for span in replica.spans] == shapes


@given(shapes)
def test_parameters_and_gradients_are_views(shapes):
    model = Vectors(*shapes)
    replica = Replica(model)
    replica.params.copy_(torch.arange(replica.params.numel()))
    assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), replica.params)
    sum((i + 1) * p.sum() for i, p in enumerate(model.parameters())).backward()
    expected = torch.cat([torch.full(shape, float(i + 1)).flatten() for i, shape in enumerate(shapes)])
    assert torch.equal(replica.grads, expected)
    assert replica.flat.grad.data_ptr() == replica.grads.data_ptr()


def test_a_fused_step_on_the_flat_parameter_is_the_step_on_each():
    torch.manual_seed(0)
    flat, plain = nn.Linear(5, 3), nn.Linear(5, 3)
    plain.load_state_dict(flat.state_dict())
    replica = Replica(flat)
    optimizers = [
        torch.optim.AdamW([replica.flat], lr=0.1, fused=True),
        torch.optim.AdamW(plain.parameters(), lr=0.1, fused=True),
    ]
    for _ in range(3):
        for model, optimizer in zip((flat, plain), optimizers, strict=True):
            model(torch.ones(2, 5)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    for mine, expected in zip(flat.parameters(), plain.parameters(), strict=True):
        # to the last bits: a fused kernel rounds the end of a vector differently on CPUs where its vectors are longer
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7)


def test_renewed_gradients_are_zero_and_the_filled_ones_are_not_touched():
    model = Vectors((4,))
    replica = Replica(model)
    addresses = set()
    for step in range(6):
        (model.p0.sum() * (step + 1)).backward()
        (filled,) = replica.renew_grads()
        addresses.add(filled.data_ptr())
        assert filled.tolist() == [step + 1] * 4 + [0]
        assert replica.grads.tolist() == [0] * 4
        replica.recycle([filled])
    assert len(addresses) == 2  # rotated, not allocated again


def test_rows_are_neurons():
    assert Span("w", 10, 22, (3, 2, 2)).rows() == [(10, 14), (14, 18), (18, 22)]
    assert Span("b", 2, 5, (3,)).rows() == [(2, 3), (3, 4), (4, 5)]
    assert Span("scalar", 7, 8, ()).rows() == [(7, 8)]


def test_dtypes_make_pairs_with_the_widest_first():
    model = Vectors((2,), (3,), (4,), dtypes=(torch.float32, torch.float64, torch.bfloat16))
    replica = Replica(model)
    assert [pair.memory.dtype for pair in replica.pairs] == [torch.float64, torch.float32, torch.bfloat16]
    assert replica.vector().dtype == torch.float64
    vector = torch.arange(9, dtype=torch.float64)
    replica.load_vector(vector)
    assert torch.equal(replica.vector(), vector)
    with pytest.raises(UsageError, match=r"several dtypes \(torch.float64, torch.float32, torch.bfloat16\)"):
        replica.params  # noqa: B018


def test_the_vector_ends_with_the_float_buffers():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    replica = Replica(model)
    model[1].running_mean.fill_(5.0)
    assert replica.vector().shape == (9 + 6 + 6,)
    assert replica.vector()[-6:].tolist() == [5.0] * 3 + [1.0] * 3
    assert [*replica.constants] == ["1.num_batches_tracked"]


def test_frozen_parameters_are_on_no_vector():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    replica = Replica(model)
    assert replica.params.shape == (6,)
    assert [*replica.constants] == ["1.weight", "1.bias"]


def test_nothing_to_train_is_said():
    with pytest.raises(UsageError, match="ReLU has no parameter that requires a gradient"):
        Replica(nn.ReLU())


def test_a_vector_of_the_wrong_length_is_refused():
    replica = Replica(Vectors((3,)))
    with pytest.raises(UsageError, match=r"shape \(4,\) does not fit this model: \(3,\) does"):
        replica.load_vector(torch.zeros(4))
    assert replica.params.tolist() == [0.0] * 3


def test_rebasing_keeps_the_optimizer_on_the_memory():
    model = Vectors((3,))
    replica = Replica(model)
    optimizer = torch.optim.SGD(replica.parameters(), lr=1.0)
    memory = torch.full((3,), 7.0)
    replica.pairs[0].rebase(memory)
    model.p0.sum().backward()
    optimizer.step()
    assert memory.tolist() == [6.0] * 3
    assert model.p0.tolist() == [6.0] * 3
