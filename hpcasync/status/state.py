"""How a run is getting on: what it says itself, what its files say, and what Slurm says."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcasync.launch.queue import ENDED
from hpcasync.report.groups import COMMON
from hpcasync.report.read import RunRecord, number, read_run
from hpcasync.stall.judgement import Stall
from hpcasync.status.held_up import held_up
from hpcasync.status.ranks import Paces, stragglers

SILENT_SECONDS = 60.0  # a run writes at least once a second, if its steps are not longer than that
SILENT_STEPS = 20  # of the slowest rank

WORDS = {
    "done": "done",
    "running": "running",
    "silent": "says running",
    "cut off": "cut off",
    "interrupted": "interrupted",
    "failed": "failed",
}


@dataclass(frozen=True)
class State:
    """One run, as it was at one moment.

    Attributes:
        label: a key of WORDS. silent: it says that it runs, but has written nothing for long; cut off: the same, and
            Slurm says that its job has ended.
        slurm: what Slurm calls its job's state; empty where it says nothing.
        idle_seconds: since it last wrote anything.
        progress: from 0 to 1, by whichever limit is nearest; NaN for a run without any.
        stall: who holds it up; None where steps are made or nothing is known.
        metric, value: the job's first, in the last evaluation.
    """

    record: RunRecord
    paces: Paces
    label: str
    slurm: str
    idle_seconds: float
    progress: float
    metric: str
    value: float
    stall: Stall | None

    @property
    def attempts(self) -> int:
        """How many times it was started."""
        return max(1, len(_list(self.record.document, "attempts")))

    @property
    def samples_per_second(self) -> float:
        """Of all ranks, over their last steps; of a run that has ended, over all of it."""
        rates = [pace.samples_per_second for pace in self.paces.ranks.values() if pace.died_seconds is None]
        lately = sum(rate for rate in rates if math.isfinite(rate)) or math.nan
        return self.record.summary.get("samples_per_second", lately) if not self.is_open else lately

    @property
    def staleness(self) -> float:
        """Mean over ranks of their last steps'; of a run that has ended, over all of it."""
        known = [pace.staleness for pace in self.paces.ranks.values() if math.isfinite(pace.staleness)]
        lately = statistics.fmean(known) if known else math.nan
        return self.record.summary.get("staleness_mean", lately) if not self.is_open else lately

    @property
    def is_open(self) -> bool:
        """It has not said that it has ended."""
        return self.label in ("running", "silent")

    @property
    def steps(self) -> int:
        """Of the rank that has made most."""
        return max((pace.steps for pace in self.paces.ranks.values()), default=0)

    @property
    def seconds(self) -> float:
        """Since its start, at the last step."""
        return max((pace.seconds for pace in self.paces.ranks.values()), default=0.0)

    def entry(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "folder": str(self.record.folder),
            "name": self.record.name,
            "job": self.record.job,
            "strategy": self.record.strategy,
            "ranks": self.record.size,
            "state": self.label,
            "slurm": {"job_id": job_id(self.record), "state": self.slurm} if job_id(self.record) else None,
            "attempts": self.attempts,
            "dead_ranks": sorted(p.rank for p in self.paces.ranks.values() if p.died_seconds is not None),
            "steps": self.steps,
            "seconds": self.seconds,
            "progress": self.progress,
            "metric": {"name": self.metric, "value": self.value} if self.metric else None,
            "samples_per_second": self.samples_per_second,
            "staleness": self.staleness,
            "stragglers": {str(rank): factor for rank, factor in stragglers(list(self.paces.ranks.values())).items()},
            "held_up": self.stall.line if self.stall else None,
            "idle_seconds": self.idle_seconds,
        }


def job_id(record: RunRecord) -> str:
    """The Slurm job of the run's last attempt; empty for none."""
    attempts = _list(record.document, "attempts")
    told = attempts[-1].get("slurm") if attempts and isinstance(attempts[-1], dict) else record.document.get("slurm")
    return str(told.get("job_id", "")) if isinstance(told, dict) else ""


def _deaths(record: RunRecord) -> list[Any]:
    """The failures of the last attempt: the next one has every rank again."""
    last = len(_list(record.document, "attempts"))
    failures = _list(record.document, "failures")
    return [each for each in failures if not isinstance(each, dict) or each.get("attempt", last) == last]


def observe(folder: Path, paces: Paces, slurm: Mapping[str, str]) -> State:
    """The run in ``folder`` now. ``paces`` goes on reading where it was.

    Args:
        slurm: see :func:`hpcasync.launch.queue.job_states`.

    Raises:
        UsageError: its run.json cannot be used.
    """
    paces.look()
    record = read_run(folder, metrics=False)
    paces.lose(_deaths(record))
    idle = max(0.0, time.time() - _last_write(folder))
    state = slurm.get(job_id(record), "")
    latest = paces.evaluations[-1].values if paces.evaluations else {}
    judged = [name for name in record.summary if name not in COMMON]
    metric = next(iter(latest), judged[0] if judged else "")
    label = _label(record, paces, state, idle)
    dead = {pace.rank for pace in paces.ranks.values() if pace.died_seconds is not None}
    return State(
        record=record,
        paces=paces,
        label=label,
        slurm=state,
        idle_seconds=idle,
        progress=1.0 if record.status == "done" else _progress(record, paces),
        metric=metric,
        value=latest.get(metric, record.summary.get(metric, math.nan)),
        stall=held_up(folder, dead) if label in ("running", "silent") else None,
    )


def _label(record: RunRecord, paces: Paces, slurm: str, idle_seconds: float) -> str:
    if record.status != "running":
        return record.status
    if slurm in ENDED:
        return "cut off"
    simulated = record.world.get("kind") == "sim"  # the seconds of its steps pass on another clock
    steps = [] if simulated else [p.busy_seconds for p in paces.ranks.values() if math.isfinite(p.busy_seconds)]
    allowed = max(SILENT_SECONDS, SILENT_STEPS * max(steps, default=0.0))
    return "silent" if idle_seconds > allowed else "running"


def _progress(record: RunRecord, paces: Paces) -> float:
    leader = paces.ranks.get(0)
    if leader is None:
        return math.nan
    limits = {name: number(record.config.get(name)) for name in ("steps", "seconds", "epochs")}
    per_epoch = record.config.get("evaluate_every") is None  # once per epoch of rank 0
    made = {
        "steps": float(leader.steps),
        "seconds": leader.seconds,
        "epochs": float(len(paces.evaluations)) if per_epoch else math.nan,
    }
    shares = [made[name] / limit for name, limit in limits.items() if limit > 0]
    return min(1.0, max((share for share in shares if math.isfinite(share)), default=math.nan))


def _last_write(folder: Path) -> float:
    times = [0.0]
    for path in [folder / "run.json", *folder.glob("metrics.rank*.jsonl")]:
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _list(document: Mapping[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    return value if isinstance(value, list) else []
