"""Run folders as they are while ranks write them, for the tests of status and watch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpcasync.status.main import observe_all
from hpcasync.status.state import State


def make_run(folder: Path, ranks: int = 4, steps: int = 20, **changes: Any) -> Path:
    """Rank r takes 0.1 s per step, rank 3 four times as long; every rank waits 0.05 s per step."""
    folder.mkdir(parents=True)
    document = {
        "schema": "hpcasync.run/1",
        "name": folder.name,
        "job": "digits",
        "status": "running",
        "strategy": {"name": "downpour", "options": {}},
        "world": {"kind": "mpi", "size": ranks},
        "config": {"strategy": ["downpour", "pull=4"], "steps": 2 * steps, "target": 0.9},
        "attempts": [{"step": 0, "slurm": {}}],
        "failures": [],
        "summary": {},
    }
    (folder / "run.json").write_text(json.dumps(document | changes))
    for rank in range(ranks):
        write_steps(folder, rank, 1, steps)
    evaluate(folder, steps, 0.5)
    return folder


def write_steps(folder: Path, rank: int, first: int, last: int, more: str = "") -> None:
    busy = 0.4 if rank == 3 else 0.1
    lines = [
        {"step": k, "seconds": k * (busy + 0.05), "loss": 1 / k, "samples": 8 * k, "waited": 0.05 * k}
        | {"staleness": rank}
        for k in range(first, last + 1)
    ]
    with (folder / f"metrics.rank{rank}.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines) + more)


def evaluate(folder: Path, step: int, accuracy: float) -> None:
    entry = {"step": step, "seconds": 0.15 * step, "evaluation": {"accuracy": accuracy}}
    with (folder / "metrics.rank0.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def change(folder: Path, **changes: Any) -> None:
    document = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(document | changes))


def see(folder: Path) -> State:
    return observe_all([folder])[0]
