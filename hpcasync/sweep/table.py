"""The table of a sweep: the best trials first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.table import Table
from rich.text import Text

from hpcasync.report.read import number
from hpcasync.report.table import ABSENT, decimals, decimals2, significant
from hpcasync.sweep.space import STRATEGY, Value
from hpcasync.sweep.study import FOLDER, RULE, outcome

SHOWN = 10  # on the screen; the file has all
STATES = {
    "done": "done",
    "missed": "missed the target",
    "diverged": "diverged",
    "pruned": "pruned",
    "failed": "failed",
    "interrupted": "interrupted",
    "lost": "lost with its worker",
    "running": "running",
    "waiting": "waiting",
}
_LEFT = ("trial", "outcome", "strategy")


def state(trial: FrozenTrial) -> str:
    """A key of :data:`STATES`."""
    if not trial.state.is_finished():
        return trial.state.name.lower()
    return str(outcome(trial).get("state", "lost"))


def said(parameters: Mapping[str, Value]) -> str:
    """Parameters in a few words: ``lr=0.05 downpour bound=4``."""
    common = [f"{name}={_value(value)}" for name, value in parameters.items() if "." not in name and name != STRATEGY]
    strategy = parameters.get(STRATEGY)
    return " ".join(common + ([str(strategy), *_own(parameters)] if strategy is not None else []))


def ranked(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The best first; those without a cost after all others, in the order in which they began."""
    return sorted(trials, key=lambda trial: (_cost(trial), trial.number))


def lines(trials: Sequence[FrozenTrial]) -> tuple[list[str], list[list[str]]]:
    """(titles, cells): a line per trial, the best first; only what every trial has in common is a column."""
    ordered = ranked(trials)
    names = list(dict.fromkeys(name for trial in ordered for name in trial.params if "." not in name))
    metric = next((str(outcome(trial)["metric"]) for trial in ordered if outcome(trial).get("metric")), "metric")
    by_seconds = any(_cost(trial) < math.inf and abs(_cost(trial)) != _number(trial, "value") for trial in ordered)
    titles = ["trial", *names, metric, *(["seconds to target"] if by_seconds else []), "seconds", "samples/s"]
    titles += ["staleness", "outcome"]
    cells = []
    for trial in ordered:
        line = [str(trial.number), *(_parameter(trial, name) for name in names)]
        line.append(_figure(_number(trial, "value"), decimals))
        line += [_figure(_cost(trial), significant)] if by_seconds else []
        line += [_figure(_number(trial, "seconds"), significant)]
        line += [_figure(_number(trial, "samples_per_second"), significant)]
        line += [_figure(_number(trial, "staleness"), decimals2)]
        rule = trial.user_attrs.get(RULE)
        cells.append([*line, STATES[state(trial)] + (f", {rule}" if rule else "")])
    return titles, cells


def terminal(trials: Sequence[FrozenTrial]) -> Table:
    """For rich: the best trials."""
    titles, cells = lines(trials)
    rest = len(cells) - SHOWN
    caption = f"and {rest} more in table.md" if rest > 0 else None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    for title in titles:
        left = title in _LEFT
        table.add_column(title, justify="left" if left else "right", overflow="fold", no_wrap=not left)
    for line in cells[:SHOWN]:
        table.add_row(*map(Text, line))
    return table


def markdown(trials: Sequence[FrozenTrial]) -> str:
    """All trials, with the names of their run folders, as a Markdown table."""
    titles, cells = lines(trials)
    titles, rule = [*titles, "folder"], ["---" if title in _LEFT else "--:" for title in titles] + ["---"]
    folders = [str(trial.user_attrs.get(FOLDER, ABSENT)) for trial in ranked(trials)]
    told = [[*line, folder] for line, folder in zip(cells, folders, strict=True)]
    told = [[cell.replace("|", "\\|") for cell in line] for line in told]
    return "".join(f"| {' | '.join(line)} |\n" for line in [titles, rule, *told])


def _cost(trial: FrozenTrial) -> float:
    if trial.state != TrialState.COMPLETE or trial.value is None:
        return math.inf
    return trial.value


def _number(trial: FrozenTrial, name: str) -> float:
    return number(outcome(trial).get(name))


def _figure(value: float, form: object) -> str:
    assert callable(form)
    return str(form(value)) if math.isfinite(value) else ABSENT


def _parameter(trial: FrozenTrial, name: str) -> str:
    if name not in trial.params:
        return ABSENT
    value = _value(trial.params[name])
    return " ".join([value, *_own(trial.params)]) if name == STRATEGY else value


def _own(parameters: Mapping[str, Value]) -> list[str]:
    """The hyperparameters of the strategy."""
    prefix = f"{parameters[STRATEGY]}."
    return [f"{k.removeprefix(prefix)}={_value(v)}" for k, v in parameters.items() if k.startswith(prefix)]


def _value(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
