"""What `hpcasync watch` shows of a run: as a screen, and on one line."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hpcasync.report.groups import one_line
from hpcasync.report.table import decimals2, percent, significant
from hpcasync.status.ranks import Pace, stragglers
from hpcasync.status.state import WORDS, State
from hpcasync.status.table import STYLES, duration, figure, lagging, slurm

BAR = 24  # columns at most
OTHERS = 74  # columns beside a rank's bar
SPARKS = 40  # columns
LABEL = 10  # columns
FRAME = 14  # lines around the ranks
_LEVELS = "▁▂▃▄▅▆▇█"
_SLOW, _DEAD, _FULL, _SOFT = "yellow", "red", "cyan", "bright_black"


def screen(state: State, width: int, height: int) -> RenderableType:
    """The run, in so many columns and about so many lines."""
    above: list[RenderableType] = [_title(state), Text(), _progress(state), Text(), _curves(state), Text()]
    return Padding(Group(*above, _ranks(state, max(6, min(BAR, width - OTHERS)), height - FRAME)), (1, 2))


def line(state: State) -> str:
    """The run on one plain line."""
    return "  ".join([state.record.name, WORDS[state.label], *([slurm(state)] if slurm(state) else []), figures(state)])


def figures(state: State) -> str:
    """How far it is and how fast, the most important first."""
    words = [
        *([percent(state.progress)] if math.isfinite(state.progress) else []),
        f"step {state.steps}",
        f"{state.seconds:.1f} s",
        *([f"{state.metric} {state.value:.4f}"] if math.isfinite(state.value) else []),
        f"{figure(state.samples_per_second, significant)} samples/s",
        f"staleness {figure(state.staleness, decimals2)}",
        *([f"stragglers {lagging(state)}"] if lagging(state) else []),
        *([f"last write {duration(state.idle_seconds)} ago"] if state.label in ("silent", "cut off") else []),
    ]
    return "  ".join(words)


def bar(share: float, width: int) -> str:
    """A line of ``share`` (0 to 1) of ``width`` columns, to half a column."""
    halves = round(2 * width * min(1.0, max(0.0, share))) if math.isfinite(share) else 0
    return "━" * (halves // 2) + "╸" * (halves % 2)


def sparks(values: Sequence[float], width: int = SPARKS) -> str:
    """A curve as one line of blocks: the means of ``width`` equal parts, between the least and the largest of them."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    edges = [i * len(known) / width for i in range(width + 1)]
    means = [statistics.fmean(known[int(a) : max(int(a) + 1, int(b))]) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[round(top * (mean - low) / (high - low)) if high > low else 0] for mean in means)


def _title(state: State) -> Text:
    record = state.record
    words = record.config.get("strategy")
    strategy = " ".join(map(str, words)) if isinstance(words, list) else record.strategy
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(record.name, "bold").append("   ")
    text.append(WORDS[state.label], STYLES[state.label])
    if state.label in ("silent", "cut off"):
        text.append(f": nothing written for {duration(state.idle_seconds)}", STYLES[state.label])
    if state.stall is not None:
        text.append(f"\n{state.stall.line}", _SLOW)
    kind = "simulated ranks" if record.world.get("kind") == "sim" else "ranks"
    facts = [one_line(f"{record.job}, {strategy}"), f"{record.size} {kind}"]
    facts += [f"attempt {state.attempts}"] * (state.attempts > 1) + [f"Slurm {slurm(state)}"] * bool(slurm(state))
    return text.append("\n" + "   ".join(facts), _SOFT)


def _progress(state: State) -> RenderableType:
    seconds = "simulated s" if state.record.world.get("kind") == "sim" else "s"
    table = Table.grid(padding=(0, 2))
    made = bar(state.progress, SPARKS)
    text = Text(made, _FULL if state.is_open else STYLES[state.label], no_wrap=True)
    text.append("━" * (SPARKS - len(made)), "grey23")
    figures = [f"step {state.steps:,}", f"{state.seconds:,.1f} {seconds}"]
    figures += [f"{figure(state.samples_per_second, significant)} samples/s"]
    figures += [f"staleness {figure(state.staleness, decimals2)}"]
    table.add_row(_label("progress"), text, Text(figure(state.progress, percent), "bold"))
    told = Text(f"{'':{LABEL}}  {'   '.join(figures)}", no_wrap=True, overflow="ellipsis")
    return Group(table, told)


def _label(name: str) -> Text:
    return Text(name.ljust(LABEL), _SOFT)


def _curves(state: State) -> Table:
    table = Table.grid(padding=(0, 2))
    leader = state.paces.ranks.get(0)
    if state.paces.losses and leader is not None:
        losses = [math.log(loss) for loss in state.paces.losses if loss > 0] or state.paces.losses
        table.add_row(_label("loss (log)"), Text(sparks(losses), "magenta"), f"{leader.loss:.4g}")
    names = list(state.paces.evaluations[-1].values) if state.paces.evaluations else []
    for name in [name for name in names if name != "loss"] or names[:1]:
        values = [evaluation.values.get(name, math.nan) for evaluation in state.paces.evaluations]
        target = state.record.config.get("target")
        goal = f"   target {target:g}" if name == state.metric and isinstance(target, int | float) else ""
        table.add_row(_label(name), Text(sparks(values), "green"), f"{values[-1]:.4f}{goal}")
    return table


def _ranks(state: State, width: int, lines: int) -> Table:
    """The ranks; where there are more than fit, the dead and the slowest."""
    paces = sorted(state.paces.ranks.values(), key=lambda pace: pace.rank)
    slow = stragglers(paces)
    rates = [pace.samples_per_second for pace in paces if math.isfinite(pace.samples_per_second)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=_SOFT, caption_style=_SOFT)
    for name in ("rank", "steps", "samples/s", "", "staleness", "waiting", "ms/step", ""):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True, overflow="fold")
    shown = paces if len(paces) <= max(4, lines) else _worst(paces, slow, max(4, lines) - 1)
    for pace in shown:
        table.add_row(*_rank(pace, slow.get(pace.rank), max(rates, default=math.nan), width))
    hidden = [pace for pace in paces if pace not in shown]
    if hidden:
        known = [pace.samples_per_second for pace in hidden if math.isfinite(pace.samples_per_second)]
        spread = f"{significant(min(known))} to {significant(max(known))} samples/s each" if known else ""
        table.caption, table.caption_justify = f"and {len(hidden)} more ranks  {spread}", "left"
    return table


def _worst(paces: Sequence[Pace], slow: dict[int, float], count: int) -> list[Pace]:
    ordered = sorted(paces, key=lambda pace: (pace.died_seconds is None, -slow.get(pace.rank, 0.0), pace.rank))
    return sorted(ordered[:count], key=lambda pace: pace.rank)


def _rank(pace: Pace, factor: float | None, fastest: float, width: int) -> list[Text]:
    if pace.died_seconds is not None:
        word = f"died at {pace.died_seconds:.0f} s"
        return [Text(str(pace.rank), _DEAD), Text(f"{pace.steps:,}"), *[Text()] * 5, Text(word, _DEAD)]
    style = _SLOW if factor is not None else _FULL
    return [
        Text(str(pace.rank), style if factor is not None else ""),
        Text(f"{pace.steps:,}"),
        Text(figure(pace.samples_per_second, significant)),
        Text(bar(pace.samples_per_second / fastest if fastest else 0.0, width), style),
        Text(figure(pace.staleness, decimals2)),
        Text(figure(pace.wait_share, percent)),
        Text(figure(1000 * pace.busy_seconds, significant)),
        Text(f"straggler ×{factor:.1f}" if factor is not None else "", _SLOW),
    ]
