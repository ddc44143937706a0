"""Run folders for the report tests: a run.json with everything in it, and metrics of some ranks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def document(name: str, strategy: str = "sync", **changes: Any) -> dict[str, Any]:
    summary = {"accuracy": 0.97, "seconds": 10.0, "seconds_to_target": 8.0, "samples_per_second": 100.0}
    summary |= {"ideal_share": 0.31, "staleness_mean": 0.0, "staleness_max": 0.0, "wait_share": 0.6, "steps": 40.0}
    summary |= changes.pop("summary", {})
    config = {"seed": 0, "name": name, "strategy": [strategy], "target": 0.95, "slow": ["3:4"], "lr": 0.1}
    config |= changes.pop("config", {})
    return {
        "schema": "hpcasync.run/1",
        "name": name,
        "job": "digits",
        "status": "done",
        "strategy": {"name": strategy, "options": {}},
        "world": {"kind": "mpi", "size": 4},
        "config": config,
        "argv": ["digits.py", "--name", name],
        "git": {"commit": "abc123", "dirty": True},
        "hosts": [{"rank": 0, "host": "n1", "affinity": [0, 1]}],
        "packages": {"torch": "2.13.0"},
        "summary": {key: {"value": value, "unit": "", "better": "higher"} for key, value in summary.items()},
    } | changes


def write(root: Path, document: dict[str, Any], ranks: int = 2, steps: int = 20, done: bool = True) -> Path:
    folder = root / re.sub(r"\W", "_", document["name"])
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(document))
    for rank in range(ranks):
        lines = [
            {"step": s, "seconds": 0.1 * s, "loss": 2.0 / s, "samples": 8 * s, "staleness": s % 3, "waited": 0.0}
            for s in range(1, steps + 1)
        ]
        if rank == 0:
            lines += [{"step": steps, "seconds": 0.1 * steps, "evaluation": {"accuracy": 0.97, "loss": 0.1}}]
        (folder / f"metrics.rank{rank}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if done:
        (folder / "DONE").touch()
    return folder
