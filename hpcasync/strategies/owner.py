"""The optimizer of the shards' owners: one state for all ranks, kept beside the parameters it belongs to."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.strategies.sharded import Sharded
from hpcasync.world import World

KINDS = ("given", "sgd", "nesterov", "adagrad", "adam")


def make_optimizer(kind: str, given: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that ``kind`` names, with the learning rate of ``given`` and PyTorch's defaults.

    Raises:
        UsageError: an unknown kind.
    """
    if kind == "given":
        return given
    parameters = [p for group in given.param_groups for p in group["params"]]
    lr = given.param_groups[0]["lr"]
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr)
    if kind == "nesterov":
        return torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True)
    if kind == "adagrad":
        return torch.optim.Adagrad(parameters, lr)
    if kind == "adam":
        return torch.optim.Adam(parameters, lr)
    raise UsageError(f"owner={kind}: it is one of {', '.join(KINDS)}")


class SharedState:
    """The state of ``optimizer`` (momentum, sums of squares, ...), sharded over the ranks as the parameters are.

    Whoever makes an update takes it out, steps, and puts it back, while it is the only one to do so.
    """

    def __init__(self, world: World, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._parts: list[tuple[Tensor, str, Tensor, Sharded]] = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                for name, start in _state(optimizer, group, parameter).items():
                    world.broadcast(start)
                    self._parts.append((parameter, name, start, Sharded(world, start.view(-1))))

    @property
    def sharded(self) -> list[Sharded]:
        return [sharded for *_, sharded in self._parts]

    def load(self) -> None:
        """Take it out of the shards into the optimizer."""
        for parameter, name, values, sharded in self._parts:
            sharded.take(values.view(-1))
            self.optimizer.state[parameter][name] = values

    def store(self) -> None:
        """Put it back. The optimizer keeps what it had at its own last step."""
        for _, _, values, sharded in self._parts:
            sharded.push(values.view(-1))
        for sharded in self.sharded:
            sharded.window.flush()


def _state(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
    """{name: values} of the tensors in the optimizer's state of ``parameter``: as they are, or zeros before its first
    step. Which there are, another optimizer of this kind tells after a step with two elements."""
    known = inspect.signature(type(optimizer)).parameters.keys() - {"params"}
    probe = torch.nn.Parameter(parameter.new_zeros(2))
    probe.grad = torch.zeros_like(probe)
    other = type(optimizer)([probe], **{name: value for name, value in group.items() if name in known})
    other.step()
    mine = optimizer.state.get(parameter, {})
    found = {name: value for name, value in other.state[probe].items() if isinstance(value, Tensor)}
    empty = {name: torch.zeros_like(parameter if value.dim() else value) for name, value in found.items()}
    return {name: mine[name].detach().clone() if name in mine else empty[name] for name in found}
