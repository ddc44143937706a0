"""After the death of a rank: the others find together and build anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from hpcasync.run.gather import broadcast_text
from hpcasync.world import RankFailed, World

Built = TypeVar("Built")


def recover(world: World, build: Callable[[World], Built]) -> tuple[World, Built]:
    """After RankFailed, by every survivor: their World, and what ``build`` has made of it.

    Whoever dies meanwhile is recovered from, too: the rest shrinks and builds once more.
    """
    while True:
        try:
            world = world.shrink()
            return world, build(world)
        except RankFailed:
            continue


def share_optimizer_state(world: World, optimizer: torch.optim.Optimizer) -> None:
    """Collective. Have the state (momentum and the like) of rank 0's optimizer.

    A death may come when some ranks have applied an update and others have not; replicas that are to stay equal then
    need equal momentum, too. No pickle: a table of what there is as JSON, then the tensors one by one.
    """
    mine: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    table = [[index, name, *_described(value)] for index, state in mine.items() for name, value in state.items()]
    shared: dict[int, dict[str, Any]] = {}
    for index, name, dtype, content in json.loads(broadcast_text(world, json.dumps(table))):
        value = content
        if dtype is not None:
            value = torch.empty(content, dtype=getattr(torch, dtype))
            if world.rank == 0:
                value.copy_(mine[index][name])
            world.broadcast(value)
        shared.setdefault(index, {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": shared})


def _described(value: Any) -> tuple[str | None, Any]:
    """(dtype, shape) of a tensor, (None, value) of anything else."""
    if isinstance(value, Tensor):
        return str(value.dtype).removeprefix("torch."), list(value.shape)
    return None, value
