"""Before anything is exchanged: do all ranks train the same model in the same way?

Ranks that disagree would wait for each other for ever (vectors of other lengths, another strategy's verbs), or train
something else than run.json says (another learning rate, another seed).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.run.gather import broadcast_text, gather_text
from hpcasync.strategies import Choice
from hpcasync.world import World

Description = dict[str, str]
"""What has to be the same on every rank: {what: a phrase that can follow "rank 1 has"}."""

_NAMED = 3  # differences of one rank


def describe(
    choice: Choice, replica: Replica, optimizer: torch.optim.Optimizer, options: Mapping[str, Any]
) -> Description:
    """What this rank is about to train, and how. Everything that decides the size or the order of a message is in it.

    Args:
        options: {name: value} of the command line, except those that may differ between ranks.
    """
    hyperparameters = " ".join(f"{key}={value}" for key, value in choice.options.items())
    told = {f"option {name}": _option(name, value) for name, value in options.items()}
    told["option strategy"] = f"--strategy {choice.name} {hyperparameters}".rstrip()
    return told | _optimizer(optimizer) | _model(replica)


def check_alike(world: World, mine: Description) -> None:
    """Collective. Return if every rank has the same description.

    Raises:
        UsageError: on every rank, the same line: which ranks differ from rank 0, and in what.
    """
    digest = list(hashlib.sha256(json.dumps(mine).encode()).digest())
    first = torch.tensor(digest, dtype=torch.uint8)
    world.broadcast(first)
    different = torch.tensor([int(first.tolist() != digest)])
    world.allreduce(different)
    if not int(different):
        return
    theirs: Description = json.loads(broadcast_text(world, json.dumps(mine)))
    everyones = gather_text(world, _differences(mine, theirs))
    ranks: dict[str, list[int]] = {}
    for rank, text in enumerate(everyones):
        if text:
            ranks.setdefault(text, []).append(rank)
    told = "; ".join(text.replace("{ranks}", _ranks(who)) for text, who in ranks.items())
    raise UsageError(f"the ranks do not train alike: {told}")


def _differences(mine: Description, first: Description) -> str:
    """ "{ranks} --lr 0.2, rank 0 has --lr 0.1", ...; empty if there is none."""
    names = [name for name in first | mine if first.get(name) != mine.get(name)]
    told = [
        f"{{ranks}} {mine.get(name, f'no {name}')}, rank 0 has {first.get(name, f'no {name}')}"
        for name in names[:_NAMED]
    ]
    more = len(names) - _NAMED
    return "; ".join(told) + (f" (and {more} more)" if more > 0 else "")


def _ranks(ranks: list[int]) -> str:
    """ "rank 1 has" or "ranks 1, 2 and 3 have"."""
    *others, last = map(str, ranks)
    return f"ranks {', '.join(others)} and {last} have" if others else f"rank {last} has"


def _model(replica: Replica) -> Description:
    flats = [*replica.pairs, *replica.buffers]
    count = sum(pair.memory.numel() for pair in replica.pairs)
    told = {"model": f"a model of {count:,} trainable parameters"}
    for flat in flats:
        for span in flat.spans:
            told[f"tensor {len(told)}"] = f"{span.name} of shape {span.shape} and {_dtype(flat.memory)} in its model"
    for name, tensor in replica.constants.items():
        told[f"tensor {len(told)}"] = f"{name} of shape {tuple(tensor.shape)} and {_dtype(tensor)} in its model"
    return told


def _optimizer(optimizer: torch.optim.Optimizer) -> Description:
    """Its class, and what every group of parameters is trained with: the defaults are in there, too."""
    name = type(optimizer).__name__
    groups = getattr(optimizer, "param_groups", [])  # an optimizer of the job's own may have none
    told = {"optimizer": f"the optimizer {name}", "groups": f"{len(groups)} group(s) of parameters in its optimizer"}
    for number, group in enumerate(groups):
        where = name if len(groups) == 1 else f"group {number} of {name}"
        for key, value in group.items():
            text = f"{sum(p.numel() for p in value):,} parameters" if key == "params" else f"{key}={_text(value)}"
            told[f"{key} of group {number}"] = f"{text} in {where}"
    return told


def _option(name: str, value: Any) -> str:
    option = f"--{name.replace('_', '-')}"
    return f"no {option}" if value is None else f"{option} {_text(value)}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _text(value: Any) -> str:
    """The same on every rank for the same value: no addresses, and sets in order."""
    if isinstance(value, Tensor):
        return _text(value.tolist())
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(key)}: {_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(_text, value))) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_text, value)) + ")"
    if value is None or isinstance(value, bool | int | float | str | Path | Enum | torch.dtype | torch.device):
        return str(value)
    return type(value).__name__
