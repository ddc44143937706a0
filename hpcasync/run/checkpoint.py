"""Checkpoints: every rank's state, complete or absent.

    <run>/ckpt/<step>/rank<r>.safetensors    the tensors in rank r's state
    <run>/ckpt/<step>/rank<r>.json           the rest of it, with a name where a tensor was
    <run>/ckpt/<step>/checkpoint.json        {"schema", "step", "members", "sha256": {file: checksum}}

Rank r of it was rank members[r] when the run began: deaths have renumbered the others.

1. Every rank writes its two files into ``ckpt/.<step>`` and has them on disk (fsync).
2. One rank, which knows all checksums, adds checkpoint.json and renames the folder to ``ckpt/<step>``.
3. It removes all but the last two: should the last one be damaged, there is the one before. And what was begun and
   never completed.

No pickle: a checkpoint is data and can do nothing when it is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.json_file import sync_folder, write_json
from hpcasync.run.gather import gather_text
from hpcasync.world import World

SCHEMA = "hpcasync.checkpoint/1"
KEPT = 2
_MARK = "~"  # begins the only key of an object that stands for something JSON has not


def write(world: World, run: Path, step: int, state: Mapping[str, Any], members: Sequence[int]) -> None:
    """Collective. Every rank's ``state`` as the checkpoint of ``step``; it is complete when rank 0 returns."""
    mine = write_rank(run, step, world.rank, state)
    everyone = [json.loads(text) for text in gather_text(world, json.dumps(mine))]
    if world.rank == 0:
        complete(run, step, members, {name: sha for each in everyone for name, sha in each.items()})


def write_rank(run: Path, step: int, rank: int, state: Mapping[str, Any]) -> dict[str, str]:
    """Phase 1. {file: sha256} of what ``rank`` adds to the checkpoint of ``step``.

    Args:
        state: dicts, lists, tuples, tensors, numbers, texts, booleans and None, in any depth.

    Raises:
        TypeError: something else, named by its place.
    """
    folder = _unfinished(run, step)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    document = _pack(dict(state), "state", tensors)
    files = {
        f"rank{rank}.safetensors": save(
            {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        ),
        f"rank{rank}.json": json.dumps(document, allow_nan=False).encode(),
    }
    for name, content in files.items():
        with (folder / name).open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def complete(run: Path, step: int, members: Sequence[int], checksums: Mapping[str, str]) -> Path:
    """Phases 2 and 3, by one rank: the checkpoint's folder. One of the same step that is there already is replaced."""
    unfinished, folder = _unfinished(run, step), run / "ckpt" / str(step)
    for left in set(unfinished.iterdir()) - {unfinished / name for name in checksums}:
        left.unlink()  # by an attempt that was cut off
    write_json(
        unfinished / "checkpoint.json",
        {"schema": SCHEMA, "step": step, "members": list(members), "sha256": dict(sorted(checksums.items()))},
    )
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.rename(folder)
    sync_folder(folder.parent)
    for old in (*(run / "ckpt" / str(step) for step in _steps(run)[:-KEPT]), *(run / "ckpt").glob(".*")):
        shutil.rmtree(old, ignore_errors=True)
    return folder


def latest(run: Path) -> Path | None:
    """The newest checkpoint of the run that is whole, judged by its checksums; None if there is none."""
    return next((run / "ckpt" / str(step) for step in reversed(_steps(run)) if _is_whole(run, step)), None)


def describe(folder: Path) -> tuple[int, list[int]]:
    """(step, members) of a checkpoint: rank 0's steps, and who its ranks were when the run began."""
    document = json.loads((folder / "checkpoint.json").read_bytes())
    return int(document["step"]), [int(rank) for rank in document["members"]]


def read_rank(folder: Path, rank: int) -> dict[str, Any]:
    """The state of ``rank``.

    Raises:
        UsageError: the checkpoint holds no such rank, or its files are damaged.
    """
    try:
        tensors = load((folder / f"rank{rank}.safetensors").read_bytes())
        state = _unpack(json.loads((folder / f"rank{rank}.json").read_bytes()), tensors)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UsageError(f"{folder}: the state of rank {rank} cannot be read ({error})") from error
    assert isinstance(state, dict)
    return state


def _unfinished(run: Path, step: int) -> Path:
    return run / "ckpt" / f".{step}"


def _steps(run: Path) -> list[int]:
    """The steps of the completed checkpoints, in order."""
    return sorted(int(path.name) for path in (run / "ckpt").glob("*") if re.fullmatch("[0-9]+", path.name))


def _is_whole(run: Path, step: int) -> bool:
    folder = run / "ckpt" / str(step)
    try:
        document = json.loads((folder / "checkpoint.json").read_bytes())
        checksums = document["sha256"]
        return (
            document["schema"] == SCHEMA
            and len(checksums) == 2 * len(document["members"])
            and all(
                hashlib.sha256((folder / Path(name).name).read_bytes()).hexdigest() == checksum
                for name, checksum in checksums.items()
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as strict JSON can hold it; tensors go to ``tensors`` under the name of their place."""
    if isinstance(value, Tensor):
        tensors[place] = value
        return {f"{_MARK}tensor": place}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {f"{_MARK}float": str(value)}
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{place}.{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {f"{_MARK}tuple": items}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith(_MARK) for key in value):
            return {key: _pack(item, f"{place}.{key}", tensors) for key, item in value.items()}
        keys, values = list(value.keys()), list(value.values())
        return {f"{_MARK}dict": [_pack(keys, f"{place}.keys", tensors), _pack(values, f"{place}.values", tensors)]}
    raise TypeError(f"{place}: a checkpoint cannot hold a {type(value).__name__}")


def _unpack(document: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(document, list):
        return [_unpack(item, tensors) for item in document]
    if not isinstance(document, dict):
        return document
    mark = next(iter(document), "")
    if not mark.startswith(_MARK):
        return {key: _unpack(item, tensors) for key, item in document.items()}
    content = document[mark]
    if mark == f"{_MARK}tensor":
        return tensors[content]
    if mark == f"{_MARK}float":
        return float(content)
    items = _unpack(content, tensors)
    return tuple(items) if mark == f"{_MARK}tuple" else dict(zip(*items, strict=True))
