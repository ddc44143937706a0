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

# What may differ from the attempt before: when to stop, where things are, what goes wrong.
_FREE = (
    *("resume", "results", "data", "threads", "epochs", "steps", "seconds", "target", "evaluate_every", "kill"),
    "checkpoint_every",
)


@dataclass(frozen=True)
class Opening:
    """The folder of a run, and where it goes on: from a checkpoint, from the beginning (None), or not at all (done)."""

    folder: Path
    checkpoint: Path | None = None
    done: bool = False

    def to_text(self) -> str:
        return json.dumps([str(self.folder.resolve()), str(self.checkpoint or ""), self.done])

    @classmethod
    def from_text(cls, text: str) -> Opening:
        folder, found, done = json.loads(text)
        return cls(Path(folder), Path(found) if found else None, done)


def open_run(options: Options, stem: str, size: int) -> Opening:
    """By the leading rank: make the run's folder, or with --resume find what there is.

    An attempt that has left no checkpoint behind, and any FAILED.json, is moved into a folder attempt-<n> of the run's.

    Raises:
        UsageError: the folder exists, or cannot be made; or the run in it is another one than these options ask for.
    """
    if not options.resume or options.name is None or not (options.results / options.name).exists():
        return Opening(create_folder(options.results, options.name, stem))
    folder = (options.results / options.name).resolve()
    if (folder / "DONE").exists():
        return Opening(folder, done=True)
    found = checkpoint.latest(folder)
    if found is None:
        _set_aside(folder, [path for path in folder.iterdir() if not path.name.startswith("attempt-")])
        return Opening(folder)
    _check(folder, options)
    saved = checkpoint.describe(found)[1]
    if saved != size:
        raise UsageError(f"--resume: {found} is of {saved} ranks; start as many, not {size}")
    if has_failed(folder):
        _set_aside(folder, [folder / "FAILED.json"])
    return Opening(folder, found)


def _check(folder: Path, options: Options) -> None:
    before: dict[str, Any] = json.loads((folder / "run.json").read_text())["config"]
    now = json.loads(json.dumps(options.config()))
    for name in sorted(before.keys() | now.keys()):
        if name not in _FREE and before.get(name) != now.get(name):
            option, was = f"--{name.replace('_', '-')}", before.get(name)
            raise UsageError(f"--resume: {folder.name} was begun with {option} {was}, not {now.get(name)}")


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


def restore(state: dict[str, Any], strategy: Strategy) -> tuple[Totals, Standing]:
    """Collective. Have ``strategy`` and the random numbers go on as :meth:`capture` has found them."""
    strategy.load_state_dict(state["strategy"])
    strategy.staleness.histogram = Counter(state["staleness"]["histogram"])
    strategy.staleness.last = state["staleness"]["last"]
    drawn = state["random"]
    torch.set_rng_state(drawn["torch"])
    position, has_gauss, gauss = drawn["numpy_position"]
    np.random.set_state(("MT19937", drawn["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    random.setstate(drawn["python"])
    totals = Totals(**state["totals"])
    strategy.dropped = totals.dropped
    return totals, Standing(**state["standing"])
