"""What a script finds in place of a gradient that has been used inside backward(): nothing that can be read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.replica import Replica

_GONE = (
    "between backward() and step(), a gradient that has left inside backward() is read or changed, as by "
    "clip_grad_norm_() or zero_grad(): choose a strategy that sends gradients in step() (sync has the same result)"
)
_SECOND = (
    "a second gradient for a parameter within one step: this strategy exchanges inside backward(), so it takes one "
    "backward() per step(); add up the losses before backward(), or choose sync"
)


class Spent:
    """Gradients that are gone. Between :meth:`mark` and :meth:`clear`, whoever touches one is told so.

    Raises:
        UsageError: in the script's own line, when it uses one; by :meth:`check`, when it has put another in its place;
            by :meth:`refuse`, when there is one; by backward(), when it adds to one.
    """

    def __init__(self, replica: Replica) -> None:
        self._pairs = replica.pairs
        parameters = [p for pair in replica.pairs for p in (pair.flat, *pair.tensors)]
        self._marks: dict[Tensor, Tensor] = {p: _Mark(p) for p in parameters}
        self._marked: set[Tensor] = set()

    def mark(self, parameters: Iterable[Tensor]) -> None:
        for parameter in parameters:
            parameter.grad = self._marks[parameter]
            self._marked.add(parameter)

    def refuse(self) -> None:
        """Something has been done to all gradients."""
        if self._marked:
            raise UsageError(_GONE)

    def check(self) -> None:
        if any(parameter.grad is not self._marks[parameter] for parameter in self._marked):
            raise UsageError(_GONE)

    def clear(self) -> None:
        """Gradients may come again."""
        for parameter in self._marked:
            parameter.grad = None
        self._marked.clear()
        for pair in self._pairs:
            pair.show_own_grads()


class _Mark(Tensor):
    """It has a shape and a dtype, as a gradient must have, and no memory."""

    @staticmethod
    def __new__(cls, like: Tensor) -> _Mark:
        return torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=like.device)

    def __init__(self, like: Tensor) -> None: ...

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise UsageError(_GONE)

    @classmethod
    def __torch_dispatch__(cls, *_: Any, **__: Any) -> Any:
        raise UsageError(_SECOND)  # backward() adds to it
