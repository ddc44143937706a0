"""Which runs repeat each other, and which may be compared.

Runs with the same configuration except seed and name repeat each other: a Group. Groups that did the same work under
the same conditions and differ in the strategy are comparable: a Setting.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hpcasync.report.read import RunRecord, number
from hpcasync.report.statistics import Ratio, Spread, Value, ratio, spread

BASELINE = "sync"
# Where a run was kept and how its chance was seeded: no part of what was measured.
REPETITION = frozenset({"name", "seed", "results"})
# Each strategy may be tuned on its own, and run on Horovod or MPI, without a change of the work to be done.
STRATEGY = frozenset({"strategy", "world", "lr", "momentum"})
FAULTS = ("slow", "jitter")
# The summary's names that every run has; the others are its job's own, the first of which it is judged by.
COMMON = frozenset(
    {"seconds", "seconds_to_target", "samples_per_second", "ideal_share"}
    | {"staleness_mean", "staleness_max", "dropped", "wait_share", "steps"}
)


@dataclass(frozen=True)
class Group:
    """Runs that repeat each other. Figures come from `finished` alone; `unfinished` are running or failed."""

    label: str
    short: str
    strategy: str
    finished: tuple[RunRecord, ...]
    unfinished: tuple[RunRecord, ...]

    def spread(self, metric: str) -> Spread | None:
        """Over the finished runs that have the metric; runs that missed their target count as censored."""
        values = (_value(run, metric) for run in self.finished)
        return spread([value for value in values if value is not None])


@dataclass(frozen=True)
class Setting:
    """Comparable groups, the baseline first. `metric` is what they are judged by; `target` its goal, if one was set."""

    title: str
    metric: str
    target: float | None
    simulated: bool
    groups: tuple[Group, ...]
    baseline: Group | None

    def ratio(self, group: Group, metric: str = "samples_per_second") -> Ratio | None:
        if self.baseline is None:
            return None
        return ratio(group.spread(metric), self.baseline.spread(metric))


def _value(run: RunRecord, metric: str) -> Value | None:
    if metric in run.summary:
        return Value(run.summary[metric])
    censored = metric == "seconds_to_target" and _target(run) is not None and "seconds" in run.summary
    return Value(run.summary["seconds"], censored=True) if censored else None


def _target(run: RunRecord) -> float | None:
    target = number(run.config.get("target"))
    return target if target == target else None


def settings(runs: Sequence[RunRecord]) -> list[Setting]:
    """The runs, sorted into comparable groups; the order depends on what the runs are, not on where they were found."""
    work = _sorted_into(runs, lambda run: _key(run, without=STRATEGY))
    varying = _varying([members[0].config for members in work], without=STRATEGY)
    return [_setting(members, varying) for members in work]


def _key(run: RunRecord, without: frozenset[str] = frozenset()) -> str:
    kept = {key: value for key, value in run.config.items() if key not in REPETITION | without}
    simulated = run.world.get("kind") == "sim"
    parts: list[Any] = [run.job, run.size, simulated, kept]
    if not without:
        parts += [run.strategy, run.options, run.world.get("kind")]
    return json.dumps(parts, sort_keys=True)


def _sorted_into(runs: Iterable[RunRecord], key: Any) -> list[list[RunRecord]]:
    members: dict[str, list[RunRecord]] = {}
    for run in sorted(runs, key=lambda run: (str(run.config.get("seed")), run.name, str(run.folder))):
        members.setdefault(key(run), []).append(run)
    return [members[name] for name in sorted(members)]


def _varying(configs: Sequence[dict[str, Any]], without: frozenset[str]) -> list[str]:
    names = sorted({name for config in configs for name in config} - REPETITION - without)
    return [name for name in names if len({json.dumps(config.get(name), sort_keys=True) for config in configs}) > 1]


def _setting(runs: Sequence[RunRecord], varying: Sequence[str]) -> Setting:
    first = runs[0]
    members = _sorted_into(runs, _key)
    own = _varying([repeats[0].config for repeats in members], without=frozenset({"strategy"}))
    names = [repeats[0].strategy for repeats in members]
    groups = [_group(repeats, own, unique=names.count(repeats[0].strategy) == 1) for repeats in members]
    candidates = [group for group in groups if group.strategy == BASELINE]
    baseline = max(candidates, key=lambda group: len(group.finished), default=None)
    groups.sort(key=lambda group: (group is not baseline, group.label))
    told = [name for name in FAULTS if first.config.get(name)]
    told += [name for name in varying if name not in told]
    simulated = first.world.get("kind") == "sim"
    ranks = f"{first.size} {'simulated ' if simulated else ''}rank{'s' if first.size > 1 else ''}"
    return Setting(
        title=", ".join([one_line(first.job), ranks] + [_said(first, name) for name in told]),
        metric=next((name for run in runs for name in run.summary if name not in COMMON), "accuracy"),
        target=_target(first),
        simulated=simulated,
        groups=tuple(groups),
        baseline=baseline,
    )


def _group(runs: Sequence[RunRecord], own: Sequence[str], unique: bool) -> Group:
    first = runs[0]
    words = [first.strategy] + [f"{key}={plain(value)}" for key, value in first.options.items()]
    words += [_said(first, name) for name in own]
    label = one_line(" ".join(words))
    return Group(
        label=label,
        short=one_line(first.strategy) if unique else label,
        strategy=first.strategy,
        finished=tuple(run for run in runs if run.status == "done"),
        unfinished=tuple(run for run in runs if run.status != "done"),
    )


def _said(run: RunRecord, name: str) -> str:
    value = run.config.get(name)
    return f"no {name}" if value in (None, "", [], {}) else one_line(f"{name} {plain(value)}")


def plain(value: Any) -> str:
    """A value of a configuration as a reader would write it on a command line."""
    if isinstance(value, dict):
        return ",".join(f"{key}:{plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(plain, value))
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return "none" if value is None else str(value)


def one_line(text: str) -> str:
    return " ".join(text.split())
