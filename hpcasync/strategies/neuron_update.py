"""The neurons of a model as one rank sees them: whose turn it is, and how some of them are updated for all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from hpcasync.replica import Replica
from hpcasync.strategies.neuron_board import Board
from hpcasync.strategies.neuron_layout import Layer, Piece, merge
from hpcasync.strategies.neuron_optimizer import PieceOptimizer
from hpcasync.world import World

Gradients = Mapping[tuple[int, int], Tensor]  # of tensors, by (pair, tensor)


class Neurons:
    """Blocks of neurons, numbered through the model, each with a rate and a clock of its own.

    Args:
        rates: every block's learning rate, as a factor of the optimizer's.
        periods: every block is updated in one of so many of its turns.
        record: called with a layer and a staleness for every update of a block: the updates of it that others have made
            since this rank read it.

    Attributes:
        turns: how many turns each block has had on this rank.
    """

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        layers: Sequence[Layer],
        rates: Sequence[float],
        periods: Sequence[int],
        record: Callable[[str, int], None],
    ) -> None:
        self.layers, self.rates, self.periods = layers, rates, periods
        self.blocks = [block for layer in layers for block in layer.blocks]
        self.turns = [0] * len(self.blocks)
        self._record = record
        self._optimizer = PieceOptimizer(replica, optimizer, (piece for block in self.blocks for piece in block.pieces))
        self.board = Board(replica, world, self.blocks)

    def turn(self, number: int) -> bool:
        """It is block ``number``'s turn: is it to be updated this time?"""
        self.turns[number] += 1
        return (self.turns[number] - 1) % self.periods[number] == 0

    def parameter(self, piece: Piece) -> nn.Parameter:
        """The piece as the optimizer sees it."""
        return self._optimizer.parameters[piece]

    def rows(self, number: int, gradients: Gradients) -> dict[Piece, Tensor]:
        """Views of what is block ``number``'s in the gradients of whole tensors."""
        rows = {}
        for piece in self.blocks[number].pieces:
            gradient = gradients.get((piece.pair, piece.tensor))
            if gradient is not None:
                shape = self.parameter(piece).shape
                rows[piece] = gradient.reshape(-1, *shape[1:])[piece.first : piece.stop]
        return rows

    def give(self, rows: Mapping[Piece, Tensor]) -> None:
        """Add gradients to those that the pieces have."""
        for piece, gradient in rows.items():
            parameter = self.parameter(piece)
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def gradient_bytes(self, number: int) -> int:
        """How much gradient block ``number`` has been given."""
        gradients = (self.parameter(piece).grad for piece in self.blocks[number].pieces)
        return sum(gradient.nbytes for gradient in gradients if gradient is not None)

    def update(self, numbers: Iterable[int]) -> None:
        """Step blocks of one layer, in ascending order, with the gradients given to them, for all ranks to see.

        A block without a gradient stays as it is.
        """
        graded = {number: self._graded(number) for number in numbers}
        graded = {number: pieces for number, pieces in graded.items() if pieces}
        if not graded:
            return
        first, stop = min(graded), max(graded) + 1
        versions = self.board.versions(first, stop)
        spans = merge(piece for pieces in graded.values() for piece in pieces)
        before = self.board.read(spans)
        for rate in dict.fromkeys(self.rates[number] for number in graded):
            alike = (pieces for number, pieces in graded.items() if self.rates[number] == rate)
            self._optimizer.step([piece for pieces in alike for piece in pieces], rate)
        self.board.write(spans, before)
        updated = torch.tensor(list(graded)) - first
        self.board.count(first, torch.zeros_like(versions).index_fill_(0, updated, 1))
        for since_read in (versions - self.board.known[first:stop])[updated].tolist():
            self._record(self.blocks[first].layer, since_read)

    def _graded(self, number: int) -> list[Piece]:
        return [piece for piece in self.blocks[number].pieces if self.parameter(piece).grad is not None]
