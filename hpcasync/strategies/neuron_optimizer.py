"""Any optimizer of torch.optim, stepping on a few pieces of the parameters at a time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.strategies.neuron_layout import Piece
from hpcasync.strategies.unflatten import part_of


class PieceOptimizer:
    """Gives ``optimizer`` the pieces, as parameters that share the replica's memory, in place of the flat vectors.

    It then keeps state (momentum, moments, a step count) piece by piece; what it has for a flat vector is cut up.

    Args:
        pieces: all of them. Those that ``optimizer`` has from an earlier time, before a death, keep their state.

    Raises:
        UsageError: an optimizer that does not hold the flat parameters.
    """

    def __init__(self, replica: Replica, optimizer: torch.optim.Optimizer, pieces: Iterable[Piece]) -> None:
        self._optimizer = optimizer
        states = [optimizer.state.pop(pair.flat, {}) for pair in replica.pairs]
        groups = {_place(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        held = {_place(p): p for group in optimizer.param_groups for p in group["params"]}
        flats = [pair.flat for pair in replica.pairs]
        self.parameters: dict[Piece, nn.Parameter] = {}
        self._group: dict[Piece, int] = {}  # which of the optimizer's groups it is in
        for piece in pieces:
            pair = replica.pairs[piece.pair]
            shape = pair.spans[piece.tensor].shape
            view = pair.params[piece.start : piece.end].view(piece.stop - piece.first, *shape[1:])
            known = held.get(_place(view), pair.flat)
            place = _place(view) if known is not pair.flat else _place(pair.flat)
            if place not in groups:
                raise UsageError("neuron needs an optimizer of replica.parameters()")
            self.parameters[piece] = nn.Parameter(view) if known is pair.flat else known
            self.parameters[piece].grad = None
            if states[piece.pair]:
                optimizer.state[self.parameters[piece]] = part_of(
                    states[piece.pair], pair, piece.start, piece.end, tuple(view.shape)
                )
            self._group[piece] = groups[place]
        for i, group in enumerate(optimizer.param_groups):
            if any(held is flat for held in group["params"] for flat in flats):
                group["params"] = [self.parameters[piece] for piece, at in self._group.items() if at == i]

    def step(self, pieces: Iterable[Piece], rate: float) -> None:
        """One step on ``pieces``, with ``rate`` times the learning rate. Their gradients are gone afterwards."""
        stepped = list(pieces)
        groups = self._optimizer.param_groups
        resting = [(group["params"], group["lr"]) for group in groups]
        for i, group in enumerate(groups):  # it would look at every piece of the model otherwise
            group["params"] = [self.parameters[piece] for piece in stepped if self._group[piece] == i]
            group["lr"] = group["lr"] * rate
        try:
            self._optimizer.step()
        finally:
            for group, (parameters, lr) in zip(groups, resting, strict=True):
                group["params"], group["lr"] = parameters, lr
        for piece in stepped:
            self.parameters[piece].grad = None


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()
