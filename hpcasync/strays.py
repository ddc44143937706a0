"""What a script does to a model between two steps, as plain PyTorch allows: brought home, or refused in one line.

A replica's vectors are what the ranks exchange and what the optimizer steps on. Parameters, gradients and buffers are
views of them, and scripts take views away: ``zero_grad()``, ``p.grad = g``, ``p.data = x``, ``model.to(...)``,
``module.running_mean = m``. Whatever lay elsewhere afterwards would train nothing, in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from operator import attrgetter, methodcaller
from typing import Any

import torch

from hpcasync.errors import UsageError
from hpcasync.replica import Replica, fill

_values = methodcaller("values")
_requires_grad = attrgetter("requires_grad")


class Strays:
    """Follows the parameters and buffers of one replica. If nothing has strayed, it compares a few lists."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._trained = {id(tensor) for pair in replica.pairs for tensor in pair.tensors}
        self._homes = {
            span.name: tensor for flat in replica.buffers for tensor, span in zip(flat.tensors, flat.spans, strict=True)
        }
        self._look()

    def adopt(self) -> None:
        """Bring parameters and buffers home, with the values that the script has given them.

        Raises:
            UsageError: that cannot be done; it names the tensor.
        """
        if [*map(id, chain.from_iterable(map(_values, self._tables)))] != self._ids:
            self._adopt_buffers()
            self._look()
            self._refuse_untrained()
        elif any(map(_requires_grad, self._frozen)):
            self._refuse_untrained()
        for flat in (*self._replica.pairs, *self._replica.buffers):
            flat.adopt_values()

    def _look(self) -> None:
        """Remember which modules, parameters and buffers there are."""
        self._tables: list[dict[str, Any]] = [
            table
            for module in self._replica.model.modules()
            for table in (module._modules, module._parameters, module._buffers)
        ]
        self._objects = [*chain.from_iterable(map(_values, self._tables))]  # kept, so that no id is used anew
        self._ids = [*map(id, self._objects)]
        self._frozen = [p for p in self._replica.model.parameters() if id(p) not in self._trained]

    def _adopt_buffers(self) -> None:
        """Copy float buffers that the script has replaced into the ones on the vectors. Others are each rank's own."""
        known = {id(tensor) for tensor in self._homes.values()}
        for prefix, module in self._replica.model.named_modules():
            for key, buffer in module._buffers.items():
                if buffer is None or not buffer.is_floating_point() or id(buffer) in known:
                    continue
                name = f"{prefix}.{key}" if prefix else key
                home = self._homes.get(name)
                if key in module._non_persistent_buffers_set and (home is None or home.shape != buffer.shape):
                    continue  # a cache, which forward() makes when it needs it
                if home is None:
                    raise UsageError(f"buffer {name} is new since Replica(model): register it before Replica(model)")
                fill(home.data, buffer, name)
                module._buffers[key] = home

    def _refuse_untrained(self) -> None:
        for name, parameter in self._replica.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in self._trained:
                raise UsageError(
                    f"{name} is a parameter that Replica(model) does not know, so it would never be trained: add, "
                    "replace and unfreeze parameters before Replica(model), and give them other values in place"
                )


class ZeroGrad:
    """The ``zero_grad`` of an optimizer of flat parameters: forgotten gradients are zeroed, and lie where they lay."""

    def __init__(self, optimizer: torch.optim.Optimizer, then: Callable[[], None]) -> None:
        earlier: Callable[..., None] = optimizer.zero_grad
        self._zero_grad: Callable[..., None] = earlier._zero_grad if isinstance(earlier, ZeroGrad) else earlier
        self._then = then

    def __call__(self, set_to_none: bool = True) -> None:
        self._zero_grad(set_to_none=set_to_none)
        self._then()


def fit(replica: Replica, optimizer: torch.optim.Optimizer) -> None:
    """Have the replica's pairs know whether ``optimizer`` holds their flat parameters or the model's own.

    Raises:
        UsageError: it holds both, not all, or others; or it is one that cannot step on dense gradients of now.
    """
    if isinstance(optimizer, torch.optim.SparseAdam | torch.optim.LBFGS):
        raise UsageError(f"{type(optimizer).__name__} cannot be used here: choose Adam, AdamW, Adagrad or SGD, say")
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:  # a class of the script's own, which may hold anything
        for pair in replica.pairs:
            pair.by_tensor = True
        return
    held = {id(parameter): parameter for group in groups for parameter in group["params"]}
    for pair in replica.pairs:
        flat = held.pop(id(pair.flat), None)
        missing = [span.name for span, tensor in zip(pair.spans, pair.tensors, strict=True) if id(tensor) not in held]
        pair.by_tensor = len(missing) < len(pair.tensors)
        if pair.by_tensor and flat is not None:
            raise UsageError("the optimizer holds replica.parameters() and model.parameters(): hand it one of them")
        if missing and flat is None:
            raise UsageError(
                f"the optimizer does not hold {missing[0]}, which requires a gradient: make it on replica.parameters() "
                "or on all of model.parameters(), after Replica(model)"
            )
    known = {id(parameter) for parameter in replica.model.parameters()}
    for key, parameter in held.items():
        if key not in known:
            raise UsageError(
                f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that is not the model's, so it "
                "would differ from rank to rank: make it a parameter of the model before Replica(model)"
            )
