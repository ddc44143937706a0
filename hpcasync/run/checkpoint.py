"""Checkpoints: every rank's state, complete or absent.

    <run>/ckpt/<step>/rank<r>.safetensors    the tensors in rank r's state
    <run>/ckpt/<step>/rank<r>.json           the rest of it, with a name where a tensor was
    <run>/ckpt/<step>/checkpoint.json        {"schema", "step", "members", "sha256": {file: checksum}}

Rank r of it was rank members[r] when the run began: deaths have renumbered the others.

1. Every rank writes its two files into ``ckpt/.<step>`` and has them on disk (fsync).
2. One rank, which knows all checksums, adds checkpoint.json and renames the folder to ``ckpt/<step>``.
3. It removes all but the last two: should the last one be damaged, there is the one before. And what was begun and
   never completed.

No pickle: a checkpoint is data and can do nothing when it is read. No links, pipes or devices: files are regular, and
lie where their names say, so nothing else is read, waited for, overwritten or removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.json_file import sync_folder, write_json
from hpcasync.run.gather import gather_text
from hpcasync.run.packing import pack, unpack
from hpcasync.world import World

SCHEMA = "hpcasync.checkpoint/2"
KEPT = 2


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
        UsageError: there is something else where the checkpoint is to lie.
    """
    folder = _unfinished(run, step)
    check_folders(run)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    document = pack(dict(state), "state", tensors)
    files = {
        f"rank{rank}.safetensors": save(
            {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        ),
        f"rank{rank}.json": json.dumps(document, allow_nan=False).encode(),
    }
    for name, content in files.items():
        (folder / name).unlink(missing_ok=True)
        with (folder / name).open("xb") as file:  # never what somebody else has put there
            file.write(content)
            os.fsync(file.fileno())
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def complete(run: Path, step: int, members: Sequence[int], checksums: Mapping[str, str]) -> Path:
    """Phases 2 and 3, by one rank: the checkpoint's folder. One of the same step that is there already is replaced."""
    unfinished, folder = _unfinished(run, step), run / "ckpt" / str(step)
    for left in set(unfinished.iterdir()) - {unfinished / name for name in checksums}:
        _remove(left)  # by an attempt that was cut off
    write_json(
        unfinished / "checkpoint.json",
        {"schema": SCHEMA, "step": step, "members": list(members), "sha256": dict(sorted(checksums.items()))},
    )
    _remove(folder)
    unfinished.rename(folder)
    sync_folder(folder.parent)
    for old in (*_completed(run)[KEPT:], *_begun(run)):
        _remove(old)
    return folder


def latest(run: Path) -> Path | None:
    """The newest checkpoint of the run that is whole; None if there is none."""
    return examine(run)[0]


def examine(run: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint of the run that is whole, judged by its checksums, and what is wrong with newer ones."""
    damaged: dict[Path, str] = {}
    for folder in _completed(run):
        try:
            _check_whole(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            damaged[folder] = in_words(error)
        else:
            return folder, damaged
    return None, damaged


def describe(folder: Path) -> tuple[int, list[int]]:
    """(step, members) of a checkpoint that is whole: rank 0's steps, and who its ranks were when the run began."""
    document = read_json(folder / "checkpoint.json")
    return document["step"], document["members"]


def read_rank(folder: Path, rank: int) -> dict[str, Any]:
    """The state of ``rank``.

    Raises:
        UsageError: the checkpoint holds no such rank, or its files are damaged.
    """
    try:
        with open_regular(folder / f"rank{rank}.safetensors") as file:
            tensors = load(file.read())
        state = unpack(read_json(folder / f"rank{rank}.json"), tensors)
        if not isinstance(state, dict):
            raise TypeError(f"it is a {type(state).__name__}")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"{folder}: the state of rank {rank} cannot be read ({in_words(error)})") from error
    return state


def _unfinished(run: Path, step: int) -> Path:
    return run / "ckpt" / f".{step}"


def _completed(run: Path) -> list[Path]:
    """The completed checkpoints, the newest first, and whatever else has the name of one."""
    found = [path for path in (run / "ckpt").glob("*") if re.fullmatch("[0-9]+", path.name)]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def _begun(run: Path) -> list[Path]:
    """Those that were begun and never completed."""
    return [path for path in (run / "ckpt").glob(".*") if re.fullmatch(r"\.[0-9]+", path.name)]


def check_folders(run: Path) -> None:
    """Raises UsageError if there is something else, a link perhaps, where the checkpoints of ``run`` are to lie."""
    for path in (run / "ckpt", *_begun(run)):
        if os.path.lexists(path) and not _is_own_folder(path):
            raise UsageError(f"{path} is a link or a file, and checkpoints lie in the run's own folders: remove it")


def _is_own_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    """Whatever has this name; what a link leads to stays."""
    if _is_own_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _check_whole(folder: Path) -> None:
    """Raises one of many exceptions if ``folder`` is no checkpoint as :func:`complete` leaves it."""
    if not _is_own_folder(folder):
        raise ValueError("it is no folder")
    document = read_json(folder / "checkpoint.json")
    if document["schema"] != SCHEMA:
        raise ValueError(f"checkpoint.json has the schema {document['schema']}, not {SCHEMA}")
    if type(document["step"]) is not int or str(document["step"]) != folder.name:
        raise ValueError(f"checkpoint.json is of step {document['step']}")
    members, checksums = document["members"], document["sha256"]
    if not members or not all(type(rank) is int for rank in members) or sorted({-1, *members}) != [-1, *members]:
        raise ValueError(f"checkpoint.json has members {members}")
    if checksums.keys() != {f"rank{rank}.{kind}" for rank in range(len(members)) for kind in ("json", "safetensors")}:
        raise ValueError("checkpoint.json names other files than its members'")
    for name, checksum in checksums.items():
        with open_regular(folder / name) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
                raise ValueError(f"{name} is not what was written")


def in_words(error: Exception) -> str:
    """What an exception says about a file, on one line."""
    if isinstance(error, OSError):
        return f"{Path(error.filename).name}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, KeyError):
        return f"no {error}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())


def read_json(path: Path) -> Any:
    """What a regular file holds. Raises OSError, ValueError or RecursionError."""
    with open_regular(path) as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"{path.name} is no JSON: {error}") from error


def open_regular(path: Path) -> BufferedReader:
    """A file to read. Raises OSError; ValueError for a link, a pipe or a device, none of which is waited for."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError(f"{path.name} is no regular file")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    return os.fdopen(descriptor, "rb")
