"""Neurons chosen before their gradient is computed: in turn, or at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from hpcasync.replica import Replica
from hpcasync.strategies.neuron_layout import Layer
from hpcasync.strategies.neuron_rows import RowGradients
from hpcasync.strategies.neuron_select import Selection
from hpcasync.strategies.neuron_update import Neurons


class Order(Iterator[int], Protocol):
    """Numbers below a count, without end; ``state`` is what brings an equal one to the same place."""

    @property
    def state(self) -> Tensor: ...
    @state.setter
    def state(self, state: Tensor) -> None: ...


class RoundRobin:
    """first, first + 1, ..., count - 1, 0, 1, ..."""

    def __init__(self, count: int, first: int) -> None:
        self._count = count
        self.state = torch.tensor(first % count)

    def __iter__(self) -> RoundRobin:
        return self

    def __next__(self) -> int:
        number = int(self.state)
        self.state = torch.tensor((number + 1) % self._count)
        return number


class Uniform:
    """Independent draws, all equally likely."""

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Uniform:
        return self

    def __next__(self) -> int:
        return int(torch.randint(self._count, (), generator=self._generator))

    @property
    def state(self) -> Tensor:
        return self._generator.get_state()

    @state.setter
    def state(self, state: Tensor) -> None:
        self._generator.set_state(state)


class Ahead(Selection):
    """One block, chosen before forward(), so that no other row of a weight needs a gradient.

    Its lease is held from before the parameters are read until the update has arrived. Where another rank has the
    lease, the next in order is tried: nobody waits.
    """

    def __init__(self, neurons: Neurons, replica: Replica, order: Order, leases: bool) -> None:
        super().__init__(neurons)
        self._order, self._leases = order, leases
        self._rows = RowGradients(replica)
        self._tensors = [pair.tensors for pair in replica.pairs]
        self._chosen: int | None = None  # whose lease this rank has, if leases are used

    def begin(self) -> None:
        most = len(self.neurons.blocks) * max(self.neurons.periods)  # enough for each to be due, in turn
        self._choose(next((number for number in islice(self._order, most) if self._may_update(number)), None))

    def take(self, layer: Layer, place: tuple[int, int], gradient: Tensor) -> None:
        if self._chosen is not None:
            rows = self.neurons.rows(self._chosen, {place: gradient})
            self.neurons.give({piece: rows.clone() for piece, rows in rows.items()})

    def complete(self, layer: Layer) -> None:
        """Nothing more to do: all that is needed has been given to the block."""

    def finish(self) -> bool:
        if self._chosen is None:
            return False
        self.neurons.update([self._chosen])
        self._release()
        return True

    def leave(self) -> None:
        self._release()
        self._rows.compute_all()

    @property
    def gradient_bytes(self) -> int:
        return 0 if self._chosen is None else self.neurons.gradient_bytes(self._chosen)

    def state_dict(self) -> dict[str, Any]:
        return {"chosen": self._chosen, "order": self._order.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._order.state = state["order"]
        self._choose(state["chosen"])

    def _may_update(self, number: int) -> bool:
        """Is it to be updated in this turn, and is its lease to be had, if one is needed?"""
        return self.neurons.turn(number) and (not self._leases or self.neurons.board.lease(number))

    def _release(self) -> None:
        if self._chosen is not None and self._leases:
            self.neurons.board.release(self._chosen)
        self._chosen = None

    def _choose(self, number: int | None) -> None:
        self._chosen = number
        pieces = () if number is None else self.neurons.blocks[number].pieces
        self._rows.compute_only(
            {
                self._tensors[piece.pair][piece.tensor]: (slice(piece.first, piece.stop), self.neurons.parameter(piece))
                for piece in pieces
            }
        )
