"""A model cut into neurons, blocks of them, and what is said about them in words: rates and periods. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hpcasync.errors import UsageError
from hpcasync.replica import Replica, Span

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Piece:
    """Rows [first, stop) of tensor number ``tensor`` of pair number ``pair``: elements [start, end) of its vector."""

    pair: int
    tensor: int
    first: int
    stop: int
    start: int
    end: int


@dataclass(frozen=True)
class Block:
    """Neurons that are updated together: a piece of each tensor of their layer.

    Attributes:
        inputs: weights of each of its neurons; 0 where the parameters are nobody's row.
    """

    layer: str
    inputs: int
    pieces: tuple[Piece, ...]

    @property
    def neurons(self) -> int:
        """How many; 1 where the parameters are nobody's row."""
        return self.pieces[0].stop - self.pieces[0].first if self.inputs else 1


@dataclass(frozen=True)
class Layer:
    """Blocks number [first, first + len(blocks)) of a model, and the (pair, tensor)s that they are cut from."""

    name: str
    tensors: tuple[tuple[int, int], ...]
    first: int
    blocks: tuple[Block, ...]

    @property
    def numbers(self) -> range:
        """Of its blocks."""
        return range(self.first, self.first + len(self.blocks))


@dataclass(frozen=True)
class _Tensor:
    """A parameter and where it lies."""

    pair: int
    number: int
    span: Span
    rows: int  # neurons that it has a row of; 0 if it is nobody's row

    def piece(self, first: int, stop: int) -> Piece:
        width = (self.span.stop - self.span.start) // self.span.shape[0] if self.span.shape else 1
        return Piece(self.pair, self.number, first, stop, *(self.span.start + row * width for row in (first, stop)))

    def whole(self) -> Piece:
        return self.piece(0, self.span.shape[0] if self.span.shape else 1)


def layers_of(replica: Replica, block: int) -> list[Layer]:
    """All layers of a model in the order of its parameters; every parameter element is in exactly one block.

    A neuron is a row (along the first dimension) of a matrix or of a tensor with more dimensions: an output of a linear
    layer, an output channel of a convolution, a gate of a recurrent layer, an entry of an embedding; and the element
    of the vector that belongs to it, which is named alike (``bias`` for ``weight``) and has as many elements. Other
    parameters (a norm's weight and bias) are nobody's row, and one block for each layer. In a model of nothing but
    vectors their elements are the neurons. A block is ``block`` consecutive neurons of a layer.

    Raises:
        UsageError: a block of less than one neuron.
    """
    if block < 1:
        raise UsageError(f"block={block}: it counts neurons, so 1 or more")
    layers: list[Layer] = []
    first = 0
    for group in _groups(replica):
        name, rows = group[0].span.name, group[0].rows
        if rows:
            inputs = sum(math.prod(each.span.shape[1:]) for each in group if each.rows)
            cuts = [(start, min(start + block, rows)) for start in range(0, rows, block)]
            blocks = tuple(Block(name, inputs, tuple(each.piece(a, b) for each in group)) for a, b in cuts)
        else:
            blocks = (Block(name, 0, tuple(each.whole() for each in group)),)
        layers.append(Layer(name, tuple((each.pair, each.number) for each in group), first, blocks))
        first += len(blocks)
    return layers


def _groups(replica: Replica) -> list[list[_Tensor]]:
    """Tensors that make up a layer, the one with rows first. Empty tensors are left out."""
    place = {id(parameter): place for place, parameter in enumerate(replica.model.parameters())}
    least = 2 if any(len(span.shape) > 1 for pair in replica.pairs for span in pair.spans) else 1  # dimensions
    found = [
        (place[id(tensor)], _Tensor(number, i, span, span.shape[0] if len(span.shape) >= least else 0))
        for number, pair in enumerate(replica.pairs)
        for i, (tensor, span) in enumerate(zip(pair.tensors, pair.spans, strict=True))
        if span.stop > span.start
    ]
    alike: dict[str, list[_Tensor]] = {}
    for _, tensor in sorted(found, key=lambda each: each[0]):
        module, dot, name = tensor.span.name.rpartition(".")
        alike.setdefault(module + dot + re.sub("weight|bias", "", name), []).append(tensor)
    groups: list[list[_Tensor]] = []
    for members in alike.values():
        members.sort(key=lambda each: -each.rows)
        rows = members[0].rows
        if all(each.span.shape[:1] == members[0].span.shape[:1] for each in members) or not rows:
            groups.append(members)
        else:
            groups.extend([each] for each in members)
    return groups


def merge(pieces: Iterable[Piece]) -> list[tuple[int, int, int]]:
    """(pair, start, end) of the fewest spans that cover ``pieces`` and nothing else."""
    spans: list[tuple[int, int, int]] = []
    for pair, start, end in sorted((piece.pair, piece.start, piece.end) for piece in pieces):
        if spans and spans[-1][0] == pair and spans[-1][2] == start:
            spans[-1] = pair, spans[-1][1], end
        else:
            spans.append((pair, start, end))
    return spans


def rates_of(rule: str, layers: Sequence[Layer]) -> list[float]:
    """Every block's learning rate, as a factor of the optimizer's.

    ``rule`` is a number for all; ``fan_in``: the fewest inputs that any neuron has over this one's, which is the step
    1 / L_b of coordinate descent up to a factor when the inputs are alike; or LAYER:NUMBER,... for some, 1 for others.

    Raises:
        UsageError: another rule, a layer that is not there, a rate that is not above 0.
    """
    blocks = [block for layer in layers for block in layer.blocks]
    if rule == "fan_in":
        fewest = min((block.inputs for block in blocks if block.inputs), default=1)
        return [fewest / block.inputs if block.inputs else 1.0 for block in blocks]
    rates = _by_layer("rates", rule, layers, float, "a number, fan_in")
    if bad := [rate for rate in rates if not 0 < rate < math.inf]:
        raise UsageError(f"rates={rule}: {bad[0]:g} is not above 0 and finite")
    return rates


def periods_of(rule: str, layers: Sequence[Layer]) -> list[int]:
    """Every block's period: how many of its turns pass from one update to the next.

    ``rule`` is a number for all; ``spread:K``: a layer's blocks have 1, 2, ..., K, 1, 2, ...; or LAYER:NUMBER,... for
    some, 1 for others.

    Raises:
        UsageError: another rule, a layer that is not there, a period below 1.
    """
    word, colon, most = rule.partition(":")
    if word == "spread" and colon and most.isascii() and most.isdigit() and int(most):
        return [1 + i % int(most) for layer in layers for i in range(len(layer.blocks))]
    periods = _by_layer("periods", rule, layers, int, "a number, spread:K")
    if bad := [period for period in periods if period < 1]:
        raise UsageError(f"periods={rule}: {bad[0]} is below 1")
    return periods


def _by_layer(
    name: str, rule: str, layers: Sequence[Layer], kind: Callable[[str], Number], others: str
) -> list[Number]:
    """Numbers per block from NUMBER or LAYER:NUMBER,...; a layer is named by a parameter or by the module around it."""
    found = {layer.name: kind("1") for layer in layers}
    try:
        if ":" not in rule:
            return [kind(rule) for layer in layers for _ in layer.blocks]
        for word in rule.split(","):
            place, _, number = word.rpartition(":")
            meant = [layer for layer in found if layer == place or layer.startswith(place + ".")]
            if not meant:
                raise UsageError(f"{name}={rule}: no layer is called {place!r}; the layers are {', '.join(found)}")
            found |= dict.fromkeys(meant, kind(number))
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{name}={rule}: it is {others}, or LAYER:NUMBER,LAYER:NUMBER,...") from None
    return [found[layer.name] for layer in layers for _ in layer.blocks]
