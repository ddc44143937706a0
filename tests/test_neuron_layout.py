"""A model cut into neurons: every parameter is in one block; rules for rates and periods."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.strategies.neuron_layout import layers_of, merge, periods_of, rates_of
from tests.training import Vectors, classifier


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    """Modules with tensors of any shape, called weight, bias or something else, of one dtype or two."""
    model = nn.Module()
    for i in range(draw(st.integers(1, 4))):
        layer = nn.Module()
        for name in draw(
            st.sets(st.sampled_from(["weight", "bias", "weight_hh_l0", "bias_hh_l0", "gain"]), min_size=1)
        ):
            shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
            dtype = draw(st.sampled_from([torch.float32, torch.float64]))
            layer.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=dtype)))
        model.add_module(f"m{i}", layer)
    return model


@given(models(), st.integers(1, 5))
def test_every_element_is_in_exactly_one_block(model, block):
    replica = Replica(model)
    layers = layers_of(replica, block)
    pieces = [piece for layer in layers for each in layer.blocks for piece in each.pieces]
    covered = Counter((piece.pair, element) for piece in pieces for element in range(piece.start, piece.end))
    whole = {(number, i) for number, pair in enumerate(replica.pairs) for i in range(pair.params.numel())}
    assert covered.keys() == whole
    assert set(covered.values()) <= {1}
    spans = merge(pieces)
    assert sum(end - start for _, start, end in spans) == len(whole)
    assert len(spans) <= sum(pair.params.numel() > 0 for pair in replica.pairs)  # a pair in one piece
    numbers = [number for layer in layers for number in layer.numbers]
    assert numbers == list(range(len(numbers)))
    for layer in layers:
        for each in layer.blocks:
            assert all(piece.start < piece.end for piece in each.pieces)
            assert each.neurons <= block
            assert len({(piece.first, piece.stop) for piece in each.pieces if each.inputs}) <= 1


def sizes(module: nn.Module, block: int = 1) -> dict[str, list[int]]:
    """{layer: the elements of each of its blocks}."""
    return {
        layer.name: [sum(piece.end - piece.start for piece in each.pieces) for each in layer.blocks]
        for layer in layers_of(Replica(module), block)
    }


def test_neurons_of_known_layers():
    assert sizes(nn.Linear(5, 3)) == {"weight": [6] * 3}
    assert sizes(nn.Linear(5, 3, bias=False)) == {"weight": [5] * 3}
    assert sizes(nn.Linear(5, 3), block=2) == {"weight": [12, 6]}
    assert sizes(nn.Linear(5, 3), block=100) == {"weight": [18]}
    assert sizes(nn.Conv2d(2, 4, 3)) == {"weight": [2 * 9 + 1] * 4}
    assert sizes(nn.Embedding(7, 3)) == {"weight": [3] * 7}
    assert sizes(nn.LayerNorm(6)) == {"weight": [2] * 6}  # nothing but vectors: their elements
    assert sizes(nn.LSTM(3, 2)) == {"weight_ih_l0": [4] * 8, "weight_hh_l0": [3] * 8}
    assert sizes(nn.ConvTranspose2d(2, 4, 3)) == {"weight": [4 * 9] * 2, "bias": [4]}
    assert sizes(nn.MultiheadAttention(4, 2)) == {"in_proj_weight": [5] * 12, "out_proj.weight": [5] * 4}
    assert sizes(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))) == {"0.weight": [3] * 3, "1.weight": [6]}


def test_a_tied_weight_has_its_rows_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert sizes(model) == {"0.weight": [4] * 3, "1.bias": [3]}


def test_rules():
    layers = layers_of(Replica(nn.Sequential(nn.Linear(8, 2), nn.BatchNorm1d(2), nn.Linear(2, 3))), 1)
    assert rates_of("0.5", layers) == [0.5] * 6
    assert rates_of("fan_in", layers) == [0.25] * 2 + [1.0] * 4
    assert rates_of("0:0.5,2.weight:2", layers) == [0.5] * 2 + [1.0] + [2.0] * 3
    assert periods_of("3", layers) == [3] * 6
    assert periods_of("spread:2", layers) == [1, 2, 1, 1, 2, 1]
    assert periods_of("2:4", layers) == [1] * 3 + [4] * 3


@pytest.mark.parametrize("rule", ["0", "-1", "nan", "inf", "", "quick", "0:x", "7:1", "0:1,", "0.wei:1", "0:0"])
def test_bad_rates(rule):
    with pytest.raises(UsageError, match=r"^rates="):
        rates_of(rule, layers_of(Replica(classifier()), 1))


@pytest.mark.parametrize("rule", ["0", "-1", "1.5", "", "fan_in", "spread:0", "spread:-1", "spread", "0:1.5", "9:1"])
def test_bad_periods(rule):
    with pytest.raises(UsageError, match=r"^periods="):
        periods_of(rule, layers_of(Replica(classifier()), 1))


@given(st.text(max_size=12))
def test_any_rule_is_understood_or_refused(rule):
    layers = layers_of(Replica(Vectors((2, 2), (3,))), 1)
    for parse in (rates_of, periods_of):
        with suppress(UsageError):
            assert len(parse(rule, layers)) == 3


def test_a_block_of_no_neuron():
    with pytest.raises(UsageError, match="block=0"):
        layers_of(Replica(classifier()), 0)
