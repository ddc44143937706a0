"""Going on with a run that was stopped: which folder, from which checkpoint, and what of a rank is in it."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.run import checkpoint
from hpcasync.run.feed import Standing
from hpcasync.run.metrics import Totals
from hpcasync.run.options import Options
from hpcasync.run.record import create_folder, has_failed
from hpcasync.run.say import warn
from hpcasync.run.state import check_state
from hpcasync.strategies import Strategy

# What may differ from the attempt before: where things are, what goes wrong ...
_FREE = frozenset(
    {"resume", "restart", "results", "data", "threads", "kill", "checkpoint_every", "stall_seconds", "non_finite"}
)
# ... and, until the run is done, when it stops.
_FREE_UNTIL_DONE = _FREE | {"epochs", "steps", "seconds", "target", "evaluate_every"}
_ELSE = "move that folder away to go on from the checkpoint before"


@dataclass(frozen=True)
class Opening:
    """What --resume has found: the folder of a run (None: a new run), where it goes on (None: from the beginning),
    whether it is done already, and the newer checkpoints that are damaged."""

    folder: Path | None = None
    checkpoint: Path | None = None
    done: bool = False
    damaged: tuple[Path, ...] = ()

    def to_text(self) -> str:
        paths = [str(self.folder or ""), str(self.checkpoint or "")]
        return json.dumps([*paths, self.done, *map(str, self.damaged)])

    @classmethod
    def from_text(cls, text: str) -> Opening:
        folder, found, done, *damaged = json.loads(text)
        return cls(Path(folder) if folder else None, Path(found) if found else None, done, tuple(map(Path, damaged)))


def find_run(options: Options, size: int, job: str) -> Opening:
    """By the leading rank of ``size`` that run ``job``.py: what there is to go on with. Nothing is changed.

    Says on stderr which checkpoints are damaged, and what that costs.

    Raises:
        UsageError: the run in the folder is another one than these options ask for, or has checkpoints and none that
            is whole, and there is no --restart.
    """
    if not options.resume or options.name is None or not (options.results / options.name).exists():
        return Opening()
    folder = (options.results / options.name).resolve()
    done = (folder / "DONE").exists()
    found, damaged = (None, {}) if done else checkpoint.examine(folder)
    if not done:
        checkpoint.check_folders(folder)
    if done or found is not None:
        _check(folder, found, options, size, job, _FREE if done else _FREE_UNTIL_DONE)
    if damaged:
        _tell(damaged, found, options.restart)
    elif not done and found is None:
        warn(f"{folder} has no checkpoint: beginning again at step 0")
    return Opening(folder, found, done, tuple(damaged))


def take_folder(opening: Opening, options: Options, stem: str) -> Path:
    """By the leading rank: the run's folder, made for a new run.

    An attempt that has left no whole checkpoint behind is moved into a folder attempt-<n> of the run's; so are damaged
    checkpoints, of which newer ones would be kept in their place, and any FAILED.json.

    Raises:
        UsageError: the folder of a new run exists, or cannot be made.
    """
    folder = opening.folder
    if folder is None:
        return create_folder(options.results, options.name, stem)
    if opening.checkpoint is None:
        _set_aside(folder, [path for path in folder.iterdir() if not path.name.startswith("attempt-")])
    else:
        _set_aside(folder, [*opening.damaged, *([folder / "FAILED.json"] if has_failed(folder) else [])])
    return folder


def _tell(damaged: Mapping[Path, str], found: Path | None, restart: bool) -> None:
    """Say what is wrong with the ``damaged`` checkpoints, and that ``found`` is used instead, or none."""
    newest = next(iter(damaged))
    what = ", ".join(f"{folder.name} ({reason})" for folder, reason in damaged.items())
    what = f"{newest.parent}: damaged checkpoint{'s' * (len(damaged) > 1)} {what}"
    if found is None and not restart:
        raise UsageError(f"--resume: {what}, and none that is whole; --resume --restart begins the run again at step 0")
    lost = int(newest.name) - int(found.name if found else 0)
    instead = f"going on from {found.name}" if found else "--restart: beginning again at step 0"
    warn(f"{what}; {instead}, {lost} steps of rank 0 are lost")


def _check(folder: Path, found: Path | None, options: Options, size: int, job: str, free: frozenset[str]) -> None:
    document = _read_run(folder)
    if document["job"] != job:
        raise UsageError(f"--resume: {folder.name} was begun by {document['job']}.py, not by {job}.py")
    before: dict[str, Any] = document["config"]
    now = options.config()
    for name in sorted(before.keys() | now.keys()):
        if name not in free and before.get(name) != now.get(name):
            option, was = f"--{name.replace('_', '-')}", before.get(name)
            raise UsageError(f"--resume: {folder.name} was begun with {option} {was}, not {now.get(name)}")
    begun = document["world"]["size"]
    members = checkpoint.describe(found)[1] if found else []
    sizes = {begun, *([len(members)] if found else [])}
    if size not in sizes:
        raise UsageError(f"--resume: {found or folder} is for {' or '.join(map(str, sorted(sizes)))} ranks, not {size}")
    if members and members[-1] >= begun:
        raise UsageError(f"--resume: {found}: ranks {members} were never in a run of {begun}; move it away")


def _read_run(folder: Path) -> dict[str, Any]:
    """run.json, as far as it is needed to go on."""
    try:
        document = checkpoint.read_json(folder / "run.json")
        if (
            isinstance(document["job"], str)
            and isinstance(document["config"], dict)
            and isinstance(document["failures"], list)
            and type(document["world"]["size"]) is int
            and isinstance(document["attempts"][-1]["status"], str)
        ):
            return dict(document)
        reason = "not as a run writes it"
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        reason = checkpoint.in_words(error)
    raise UsageError(f"--resume: {folder}/run.json cannot be used ({reason}); put it back, or give another --name")


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
        source: where the state is from, in words.
    """

    state: dict[str, Any]
    whole: bool
    own: bool
    source: str

    @classmethod
    def read(cls, folder: Path, rank: int, size: int, replica: Replica) -> Saved:
        """What ``rank`` of ``size`` finds in the checkpoint ``folder``.

        Raises:
            UsageError: it is damaged, or of another model than ``replica``'s.
        """
        members = checkpoint.describe(folder)[1]
        whole = len(members) == size
        own = whole or rank in members
        source = rank if whole else members.index(rank) if own else 0
        state = checkpoint.read_rank(folder, source)
        try:
            check_state(state, replica)
        except ValueError as error:
            raise UsageError(f"{folder}: the state of rank {source} cannot be used ({error}); {_ELSE}") from error
        return cls(state, whole, own, f"{folder}: the state of rank {source}")

    def restore(self, strategy: Strategy) -> tuple[Totals, Standing]:
        """Collective. Have ``strategy`` and the random numbers go on as :func:`capture` has found them.

        Raises:
            UsageError: what is in the checkpoint is not this strategy's.
        """
        try:
            return self._restore(strategy)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            reason = f"{type(error).__name__}: {checkpoint.in_words(error)}"
            raise UsageError(f"{self.source} cannot be used ({reason}); {_ELSE}") from error

    def _restore(self, strategy: Strategy) -> tuple[Totals, Standing]:
        if self.whole:
            strategy.load_state_dict(self.state["strategy"])
        else:
            strategy.optimizer.load_state_dict(self.state["strategy"]["optimizer"])
        totals, standing = Totals(**self.state["totals"]), Standing(**self.state["standing"])
        if not self.own:
            return Totals(steps=totals.steps), standing
        strategy.staleness.histogram = Counter(self.state["staleness"]["histogram"])
        strategy.staleness.last = self.state["staleness"]["last"]
        strategy.dropped, strategy.finite_check.dropped = totals.dropped, totals.non_finite
        drawn = self.state["random"]
        torch.set_rng_state(drawn["torch"])
        position, has_gauss, gauss = drawn["numpy_position"]
        np.random.set_state(("MT19937", drawn["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
        random.setstate(drawn["python"])
        return totals, standing
