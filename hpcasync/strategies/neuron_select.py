"""Which neurons a step updates, once their gradients are there: all as they become ready, or the largest."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpcasync.strategies.neuron_layout import Layer, Piece
from hpcasync.strategies.neuron_update import Gradients, Neurons


class Selection(ABC):
    """A rule of selection. It is told what happens in a step, in the order of these methods."""

    def __init__(self, neurons: Neurons) -> None:
        self.neurons = neurons

    @abstractmethod
    def begin(self) -> None:
        """A step begins. The parameters are read after this."""

    @abstractmethod
    def take(self, layer: Layer, place: tuple[int, int], gradient: Tensor) -> None:
        """backward() has completed the gradient of one of a layer's tensors."""

    @abstractmethod
    def complete(self, layer: Layer) -> None:
        """That was the last of the layer."""

    @abstractmethod
    def finish(self) -> bool:
        """backward() is over. False if the step was in vain: nothing could be updated."""

    @abstractmethod
    def leave(self) -> None:
        """This rank makes no more steps."""

    @property
    @abstractmethod
    def gradient_bytes(self) -> int:
        """How much gradient it keeps."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What it keeps between steps."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on a :meth:`state_dict`."""


class _Afterwards(Selection):
    """Selects among gradients that are there, so it keeps nothing between steps."""

    def __init__(self, neurons: Neurons) -> None:
        super().__init__(neurons)
        self._kept: dict[tuple[int, int], Tensor] = {}  # the gradients of layers that are not complete yet

    def begin(self) -> None:
        """Nothing to do: all gradients are wanted."""

    def take(self, layer: Layer, place: tuple[int, int], gradient: Tensor) -> None:
        self._kept[place] = gradient

    def leave(self) -> None:
        """Nothing to do: leases are held inside finish() only."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to do."""

    @property
    def gradient_bytes(self) -> int:
        return sum(gradient.nbytes for gradient in self._kept.values())

    def _gradients(self, layer: Layer) -> Gradients:
        """Those of the layer, kept no longer."""
        return {place: self._kept.pop(place) for place in layer.tensors if place in self._kept}


class Ready(_Afterwards):
    """Every block in every step, as soon as its layer's gradient is complete: inside backward() where one can wait."""

    def __init__(self, neurons: Neurons, can_wait_in_backward: bool) -> None:
        super().__init__(neurons)
        self._can_wait = can_wait_in_backward
        self._ready: list[Layer] = []

    def complete(self, layer: Layer) -> None:
        self._ready.append(layer)
        if self._can_wait:
            self.finish()

    def finish(self) -> bool:
        while self._ready:
            layer = self._ready.pop(0)
            gradients = self._gradients(layer)
            due = [number for number in layer.numbers if self.neurons.turn(number)]
            for number in due:
                self.neurons.give(self.neurons.rows(number, gradients))
            self.neurons.update(due)
        return True


class Greedy(_Afterwards):
    """The block with the largest gradient in the measure that its rate makes: argmax_b rate_b |g_b|^2.

    A gradient says nothing about a block that others have updated since the parameters were read: one more step would
    come on top of theirs. So a lease is of use only for the version that was read; otherwise the next largest block is
    tried, and nobody waits. A layer's gradient is freed once its largest blocks are known.

    Args:
        keep: how many of the largest blocks are kept until backward() is over.
    """

    def __init__(self, neurons: Neurons, leases: bool, keep: int) -> None:
        super().__init__(neurons)
        self._leases, self._keep = leases, keep
        self._largest: list[tuple[float, int, dict[Piece, Tensor]]] = []  # a heap: the smallest of them comes first

    def complete(self, layer: Layer) -> None:
        gradients = self._gradients(layer)
        scores = self._scores(layer, gradients)
        for index in scores.topk(min(self._keep, len(scores))).indices.tolist():
            candidate = float(scores[index]), layer.first + index
            if candidate[0] < 0 or (len(self._largest) == self._keep and candidate <= self._largest[0][:2]):
                break
            if len(self._largest) == self._keep:
                heapq.heappop(self._largest)
            rows = {piece: rows.clone() for piece, rows in self.neurons.rows(candidate[1], gradients).items()}
            heapq.heappush(self._largest, (*candidate, rows))

    def finish(self) -> bool:
        largest = sorted(self._largest, key=lambda each: -each[0])
        self._largest.clear()
        return not largest or any(self._update(number, rows) for _, number, rows in largest)

    @property
    def gradient_bytes(self) -> int:
        candidates = (gradient for _, _, rows in self._largest for gradient in rows.values())
        return super().gradient_bytes + sum(gradient.nbytes for gradient in candidates)

    def _scores(self, layer: Layer, gradients: Gradients) -> Tensor:
        """(blocks,) the measure of every block of the layer; -1 if it is not to be updated in this turn."""
        scores = torch.zeros(len(layer.blocks))
        for gradient in gradients.values():
            if len(layer.blocks) == 1:
                scores += torch.linalg.vector_norm(gradient).square()
            else:
                squares = torch.linalg.vector_norm(gradient.reshape(gradient.shape[0], -1), dim=1).square()
                block = torch.arange(len(squares)) // layer.blocks[0].neurons
                scores.index_add_(0, block, squares.to(scores.dtype))
        scores *= torch.tensor([self.neurons.rates[number] for number in layer.numbers])
        due = torch.tensor([self.neurons.turn(number) for number in layer.numbers])
        return scores.where(due, torch.full_like(scores, -1.0))

    def _update(self, number: int, rows: Mapping[Piece, Tensor]) -> bool:
        """Update a block, unless another rank is updating it or has done so since the parameters were read."""
        board = self.neurons.board
        if self._leases and not board.lease(number):
            return False
        current = not self._leases or bool(board.versions(number, number + 1) == board.known[number])
        if current:
            self.neurons.give(rows)
            self.neurons.update([number])
        if self._leases:
            board.release(number)
        return current
