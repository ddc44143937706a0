"""What the sweep tests share: spaces and studies of a few lines, and jobs that leave a run's folder behind at once."""

from __future__ import annotations

import math
import os
from pathlib import Path

from hpcasync.sweep.folder import LOST_SECONDS, Folder
from hpcasync.sweep.space import Space, read_space
from hpcasync.sweep.study import Study
from hpcasync.sweep.trial import Outcome

JOB = str(Path(__file__).with_name("tiny_job.py"))
ROOT = Path(__file__).parent.parent


def space(tmp_path: Path, text: str) -> Space:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return read_space(path)


def study(tmp_path: Path, text: str, ranks: int = 4) -> Study:
    folder = Folder(tmp_path / "sweep")
    folder.enter({"sweep": text})
    return Study(folder, space(tmp_path, text), ranks)


FAKE = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
folder.mkdir()
ended = []
signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
signal.signal(signal.SIGUSR1, lambda number, frame: ended.append(number))
def write(status, config, summary):
    document = {"schema": "hpcasync.run/1", "name": "fake", "job": "fake", "status": status, "config": config,
                "metrics": [{"name": "accuracy", "better": "higher"}, {"name": "loss", "better": "lower"}],
                "strategy": {"name": "sync", "options": {}}, "world": {"kind": "mpi", "size": 1},
                "summary": {name: {"value": value} for name, value in summary.items()}}
    (folder / "run.json").write_text(json.dumps(document))
def evaluate(step, seconds, values):
    with (folder / "metrics.rank0.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "seconds": seconds, "evaluation": values}) + chr(10))
def wait():
    while not ended:
        time.sleep(0.01)
"""
CASES = {
    "done": (
        'write("done", {"target": None}, {"seconds": 5.0, "staleness_mean": 1.5}); evaluate(1, 4.0, {"accuracy": 0.5});'
        '(folder / "DONE").touch()',
        Outcome("done", -0.5, "accuracy", 0.5, 5.0, staleness=1.5),
    ),
    "target": (
        'write("done", {"target": 0.4}, {"seconds": 5.0, "seconds_to_target": 3.0}); evaluate(1, 3, {"accuracy": 0.5});'
        '(folder / "DONE").touch()',
        Outcome("done", 3.0, "accuracy", 0.5, 5.0),
    ),
    "missed": (
        'write("done", {"target": 0.9}, {"seconds": 5.0}); evaluate(1, 3.0, {"accuracy": 0.5});'
        '(folder / "DONE").touch()',
        Outcome("missed", math.nan, "accuracy", 0.5, 5.0),
    ),
    "diverged": (
        'write("done", {"target": None}, {"seconds": 5.0}); evaluate(1, 3.0, {"loss": None});(folder / "DONE").touch()',
        Outcome("diverged", math.nan, "loss", math.nan, 5.0),
    ),
    "pruned": (
        'write("running", {"seconds": 9}, {}); evaluate(1, 1, {"loss": 7.0}); evaluate(1, 2, {"loss": 8.0}); wait();'
        'write("interrupted", {"seconds": 9}, {"seconds": 2.0}); sys.exit(143)',
        Outcome("pruned", math.nan, "loss", 8.0, 2.0),
    ),
    "stopped": (
        'write("interrupted", {}, {"seconds": 2.0}); evaluate(1, 1.0, {"loss": 7.0}); sys.exit(85)',
        Outcome("interrupted", math.nan, "loss", 7.0, 2.0, code=85),
    ),
    "raised": (
        'raise RuntimeError("out of luck")',
        Outcome("failed", reason="RuntimeError: out of luck", code=1),
    ),
    "refused": (
        'sys.exit(print("hpcasync: error: --lr -1: it must be a positive number", file=sys.stderr) or 2)',
        Outcome("failed", reason="error: --lr -1: it must be a positive number", code=2),
    ),
    "undeclared": (
        'write("running", {}, {}); evaluate(1, 1.0, {"auc": 0.5}); wait()',
        Outcome("failed", reason="sweep: the job does not declare whether auc should be high or low", code=2),
    ),
    "silent": ("sys.exit(3)", Outcome("failed", reason="ended with exit code 3", code=3)),
    "torn": ('(folder / "DONE").touch()', Outcome("failed", reason="the run is done, but")),
}


def grow_old(path: Path) -> None:
    then = path.stat().st_mtime - LOST_SECONDS - 1
    os.utime(path, (then, then))
