"""Going on with a run that was stopped: which folder, from which checkpoint, and what of a rank is in it."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcasync.errors import UsageError
from hpcasync.run import checkpoint
from hpcasync.run.feed import Standing
from hpcasync.run.metrics import Totals
from hpcasync.run.options import Options
from hpcasync.run.record import create_folder, has_failed
from hpcasync.strategies import Strategy

# What may differ from the attempt before: where things are, what goes wrong ...
_FREE = frozenset({"resume", "results", "data", "threads", "kill", "checkpoint_every", "non_finite"})
# ... and, until the run is done, when it stops.
_FREE_UNTIL_DONE = _FREE | {"epochs", "steps", "seconds", "target", "evaluate_every"}


@dataclass(frozen=True)
class Opening:
    """What --resume has found: the folder of a run (None: a new run), where it goes on (None: from the beginning), and
    whether it is done already."""

    folder: Path | None = None
    checkpoint: Path | None = None
    done: bool = False

    def to_text(self) -> str:
        return json.dumps([str(self.folder or ""), str(self.checkpoint or ""), self.done])

    @classmethod
    def from_text(cls, text: str) -> Opening:
        folder, found, done = json.loads(text)
        return cls(Path(folder) if folder else None, Path(found) if found else None, done)


def find_run(options: Options, size: int, job: str) -> Opening:
    """By the leading rank of ``size`` that run ``job``.py: what there is to go on with. Nothing is changed.

    Raises:
        UsageError: the run in the folder is another one than these options ask for.
    """
    if not options.resume or options.name is None or not (options.results / options.name).exists():
        return Opening()
    folder = (options.results / options.name).resolve()
    done = (folder / "DONE").exists()
    found = None if done else checkpoint.latest(folder)
    if done or found is not None:
        _check(folder, found, options, size, job, _FREE if done else _FREE_UNTIL_DONE)
    return Opening(folder, found, done)


def take_folder(opening: Opening, options: Options, stem: str) -> Path:
    """By the leading rank: the run's folder, made for a new run.

    An attempt that has left no checkpoint behind, and any FAILED.json, is moved into a folder attempt-<n> of the run's.

    Raises:
        UsageError: the folder of a new run exists, or cannot be made.
    """
    folder = opening.folder
    if folder is None:
        return create_folder(options.results, options.name, stem)
    if opening.checkpoint is None:
        _set_aside(folder, [path for path in folder.iterdir() if not path.name.startswith("attempt-")])
    elif has_failed(folder):
        _set_aside(folder, [folder / "FAILED.json"])
    return folder


def _check(folder: Path, found: Path | None, options: Options, size: int, job: str, free: frozenset[str]) -> None:
    document = json.loads((folder / "run.json").read_text())
    if document["job"] != job:
        raise UsageError(f"--resume: {folder.name} was begun by {document['job']}.py, not by {job}.py")
    before: dict[str, Any] = document["config"]
    now = json.loads(json.dumps(options.config()))
    for name in sorted(before.keys() | now.keys()):
        if name not in free and before.get(name) != now.get(name):
            option, was = f"--{name.replace('_', '-')}", before.get(name)
            raise UsageError(f"--resume: {folder.name} was begun with {option} {was}, not {now.get(name)}")
    sizes = {document["world"]["size"], *([len(checkpoint.describe(found)[1])] if found else [])}
    if size not in sizes:
        raise UsageError(f"--resume: {found or folder} is for {' or '.join(map(str, sorted(sizes)))} ranks, not {size}")


def _set_aside(folder: Path, paths: list[Path]) -> None:
    if not paths:
        return
    number = next(i for i in range(1, 1 << 20) if not (folder / f"attempt-{i}").exists())
    aside = folder / f"attempt-{number}"
    aside.mkdir(mode=0o700)
    for path in paths:
        path.rename(aside / path.name)


def capture(strategy: Strategy, totals: Totals, standing: Standing) -> dict[str, Any]:
    """Collective. All that a rank needs to go on."""
    mersenne = np.random.get_state(legacy=False)
    assert isinstance(mersenne, dict)
    return {
        "strategy": strategy.state_dict(),
        "staleness": {"histogram": dict(strategy.staleness.histogram), "last": strategy.staleness.last},
        "totals": dataclasses.asdict(totals) | {"interrupted": 0},
        "standing": dataclasses.asdict(standing),
        "random": {
            "torch": torch.get_rng_state(),
            "numpy": torch.from_numpy(mersenne["state"]["key"].astype(np.int64)),
            "numpy_position": [int(mersenne["state"]["pos"]), mersenne["has_gauss"], mersenne["gauss"]],
            "python": random.getstate(),
        },
    }


@dataclass(frozen=True)
class Saved:
    """What one rank goes on with.

    Where deaths had left fewer ranks than the run was begun with and all are there again, they go on as after a death:
    with a new strategy, the parameters of the first of those that were left, and the data dealt out anew. A rank that
    had died takes its optimizer state from that first one too, and stands where that one stood.

    Attributes:
        state: what :func:`capture` has found, of this rank or of the first that was left.
        whole: no rank was missing.
        own: this rank was not missing.
    """

    state: dict[str, Any]
    whole: bool
    own: bool

    @classmethod
    def read(cls, folder: Path, rank: int, size: int) -> Saved:
        """What ``rank`` of ``size`` finds in the checkpoint ``folder``. Raises UsageError if it is damaged."""
        members = checkpoint.describe(folder)[1]
        if len(members) == size:
            return cls(checkpoint.read_rank(folder, rank), whole=True, own=True)
        own = rank in members
        return cls(checkpoint.read_rank(folder, members.index(rank) if own else 0), whole=False, own=own)

    def restore(self, strategy: Strategy) -> tuple[Totals, Standing]:
        """Collective. Have ``strategy`` and the random numbers go on as :func:`capture` has found them."""
        if self.whole:
            strategy.load_state_dict(self.state["strategy"])
        else:
            strategy.optimizer.load_state_dict(self.state["strategy"]["optimizer"])
        totals, standing = Totals(**self.state["totals"]), Standing(**self.state["standing"])
        if not self.own:
            return Totals(steps=totals.steps), standing
        strategy.staleness.histogram = Counter(self.state["staleness"]["histogram"])
        strategy.staleness.last = self.state["staleness"]["last"]
        strategy.dropped, strategy.guard.dropped = totals.dropped, totals.non_finite
        drawn = self.state["random"]
        torch.set_rng_state(drawn["torch"])
        position, has_gauss, gauss = drawn["numpy_position"]
        np.random.set_state(("MT19937", drawn["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
        random.setstate(drawn["python"])
        return totals, standing
