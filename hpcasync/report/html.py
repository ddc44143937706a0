"""The page of a report: one file, nothing loaded from elsewhere.

Everything is built by `tag`, which escapes every text that is not Markup. Only this file and the figures of
hpcasync.report.svg make Markup.
"""

import shlex
from collections.abc import Sequence
from html import escape
from typing import Any

from hpcasync.report import plot
from hpcasync.report.groups import Group, Setting, plain
from hpcasync.report.read import STATUSES, RunRecord
from hpcasync.report.statistics import Spread
from hpcasync.report.style import SHEET
from hpcasync.report.table import columns, decimals, significant

GENERATOR = '<meta name="generator" content="hpcasync report">'


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str) -> Markup:
    """An element. Children that are not Markup are escaped; `class_` stands for class."""
    said = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{said}>{join(children)}</{name}>")


def join(parts: Sequence[str]) -> Markup:
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def page(settings: Sequence[Setting], skipped: Sequence[str]) -> str:
    """The whole page; `skipped` are the lines about runs that could not be read."""
    runs = [run for setting in settings for group in setting.groups for run in (*group.finished, *group.unfinished)]
    title = settings[0].title if len(settings) == 1 else "Training runs"
    body = [tag("h1", title), tag("p", _counted(runs), class_="soft")]
    body += [tag("p", line, class_="failed") for line in skipped]
    for setting in settings:
        body += [tag("h2", setting.title)] if len(settings) > 1 else []
        body += [_verdicts(setting), _table(setting), _plots(setting)]
    body += [tag("h2", "Runs")]
    for setting in settings:
        for group in setting.groups:
            body += [_run(setting, group, run) for run in (*group.finished, *group.unfinished)]
    body.append(_notes())
    head = [Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">')]
    head += [Markup(GENERATOR), tag("title", f"{title} · hpcasync"), tag("style", Markup(SHEET))]
    html = tag("html", tag("head", *head), tag("body", tag("main", *body)), lang="en")
    return f"<!doctype html>\n{html}\n"


def _counted(runs: Sequence[RunRecord]) -> str:
    counts = [(words, sum(run.status == status for run in runs)) for status, words in STATUSES.items()]
    return "Runs: " + ", ".join(f"{count} {words}" for words, count in counts if count) + "."


def _series(setting: Setting, group: Group) -> str:
    return f"--series: var(--series-{plot.colour(setting, group)})"


def _verdicts(setting: Setting) -> Markup:
    compared = [group for group in setting.groups if group is not setting.baseline]
    if setting.baseline is None:
        return tag("p", "There is no sync run under the same conditions, so no ratio is given.")
    if not compared:
        return tag("p", "There is only the baseline here: nothing to compare.")
    cards = []
    for group in compared:
        ratio = setting.ratio(group)
        figure = significant(ratio.value) + " \N{MULTIPLICATION SIGN}" if ratio else "\N{EN DASH}"
        unit = tag("small", f" samples/s of {setting.baseline.short}") if ratio else Markup("")
        words = tag("p", verdict(setting, group))
        cards.append(
            tag(
                "li",
                tag("h3", group.label),
                tag("div", figure, unit, class_="figure"),
                words,
                style=_series(setting, group),
            )
        )
    return tag("ul", *cards, class_="verdicts")


def verdict(setting: Setting, group: Group) -> str:
    """What the runs of `group` show against the baseline, and how much that is worth."""
    base = setting.baseline
    if base is None or not base.finished or not group.finished:
        return "No finished run to compare."
    sentences = [_target_sentence(setting, group, base)]
    own, other = group.spread(setting.metric), base.spread(setting.metric)
    if own and other:
        sentences.append(
            f"Final {setting.metric} {decimals(own.median.value)}; {base.short} {decimals(other.median.value)}."
        )
    n, m = len(group.finished), len(base.finished)
    if n == m == 1:
        sentences.append("1 run each: no interval.")
    elif min(n, m) == 1:
        sentences.append(f"Runs: {n} against {m}; with a single run on one side, no interval.")
    else:
        sentences.append(f"Medians of {n} and {m} runs. {_overlap(group, base)}")
    return " ".join(sentence for sentence in sentences if sentence)


def _target_sentence(setting: Setting, group: Group, base: Group) -> str:
    own, other = group.spread("seconds_to_target"), base.spread("seconds_to_target")
    if setting.target is None or own is None or other is None:
        return ""
    goal = f"{setting.metric} {setting.target:g}"
    if own.median.censored:
        return f"Did not reach {goal} within {significant(own.median.value)} s; {base.short} {_reached(other)}."
    return f"Reached {goal} in {significant(own.median.value)} s; {base.short} {_reached(other)}."


def _reached(spread: Spread) -> str:
    words = "did not within" if spread.median.censored else "took"
    return f"{words} {significant(spread.median.value)} s"


def _overlap(group: Group, base: Group) -> str:
    own, other = group.spread("samples_per_second"), base.spread("samples_per_second")
    if own is None or other is None:
        return ""
    apart = own.low.value > other.high.value or own.high.value < other.low.value
    return f"The ranges of samples/s {'do not overlap' if apart else 'overlap'}; no test was made."


def _table(setting: Setting) -> Markup:
    shown = columns(setting)
    head = tag("tr", tag("th", "strategy"), *(tag("th", column.title, title=column.meaning) for column in shown))
    rows = []
    for group in setting.groups:
        swatch = tag("span", class_="swatch", style=_series(setting, group))
        cells = [column.cell(setting, group) for column in shown]
        values = [tag("td", c.figure, tag("span", c.range, class_="range") if c.range else "") for c in cells]
        rows.append(tag("tr", tag("th", swatch, group.label, scope="row"), *values))
    table = tag("table", tag("thead", head), tag("tbody", *rows))
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="Results by strategy")


def _plots(setting: Setting) -> Markup:
    time = "on the simulated clock" if setting.simulated else "since the start of the run"
    figures = [
        (plot.evaluations(setting), f"Held-out {setting.metric} against seconds {time}; one curve per run."),
        (
            plot.losses(setting),
            f"Training loss of all ranks. Line: moving median over 2 % of a run's losses, at least "
            f"5. Dots: at most {plot.RAW_POINTS} raw losses per strategy.",
        ),
        (
            plot.throughput(setting),
            "Samples per second, all ranks; the stroke marks the ideal, the sum of what the "
            "ranks would reach if they only computed. With several runs: bar at the median, a dot per run.",
        ),
        (plot.staleness(setting), "Updates made since the parameters of a step were read, over all steps and ranks."),
    ]
    drawn = [tag("figure", Markup(svg), tag("figcaption", caption)) for svg, caption in figures if svg]
    return tag("div", *drawn, class_="plots")


def _run(setting: Setting, group: Group, run: RunRecord) -> Markup:
    reached = [f"{setting.metric} {decimals(run.summary[setting.metric])}"] if setting.metric in run.summary else []
    label = ", ".join([group.label, *reached])
    swatch = tag("span", class_="swatch", style=_series(setting, group))
    state = tag("span", STATUSES[run.status], class_=f"status {run.status}")
    summary = tag("summary", swatch, tag("b", run.name), f" {label}", state)
    document = run.document
    facts: list[tuple[str, Any]] = [
        ("folder", str(run.folder)),
        ("failure", run.failure),
        ("unreadable lines", ", ".join(f"rank {m.rank}: {m.unreadable}" for m in run.ranks if m.unreadable)),
        ("losses not finite", _lost(run)),
        ("started", document.get("started")),
        ("finished", document.get("finished")),
        ("command", _command(document.get("argv"))),
        ("git commit", _commit(document.get("git"))),
        ("world", plain(run.world)),
        ("config hash", document.get("config_hash")),
    ]
    facts += _hosts(document.get("hosts"))
    facts += [(key, _listed(document.get(key))) for key in ("packages", "environment", "slurm")]
    config = [(key, plain(value)) for key, value in sorted(run.config.items())]
    return tag("details", summary, _definitions(facts), tag("h3", "Configuration"), _definitions(config))


def _definitions(facts: Sequence[tuple[str, Any]]) -> Markup:
    told = [(key, str(value)) for key, value in facts if value not in (None, "")]
    return tag("dl", *(join([tag("dt", key), tag("dd", tag("code", value))]) for key, value in told))


def _lost(run: RunRecord) -> str:
    losses = run.column("loss")
    lost = int((losses - losses != 0).sum())
    return f"{lost} of {len(losses)}" if lost else ""


def _command(argv: Any) -> str:
    return shlex.join(map(str, argv)) if isinstance(argv, list) else ""


def _commit(git: Any) -> str:
    if not isinstance(git, dict) or not git.get("commit"):
        return ""
    return f"{git['commit']}{' and uncommitted changes' if git.get('dirty') else ''}"


def _hosts(hosts: Any) -> list[tuple[str, str]]:
    """What run.json says of each rank's machine; ranks of which it says the same share an entry."""
    ranks: dict[str, list[str]] = {}
    for host in hosts if isinstance(hosts, list) else []:
        if isinstance(host, dict):
            said = ", ".join(f"{key} {plain(value)}" for key, value in host.items() if key != "rank")
            ranks.setdefault(said, []).append(plain(host.get("rank")))
    return [(_named(members), said) for said, members in ranks.items()]


def _named(ranks: Sequence[str]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(ranks)}" if len(ranks) <= 8 else f"{len(ranks)} ranks, {ranks[0]} to {ranks[-1]}"


def _listed(items: Any) -> str:
    return "\n".join(f"{key} {plain(value)}" for key, value in items.items()) if isinstance(items, dict) else ""


def _notes() -> Markup:
    return tag(
        "footer",
        "The unit of repetition is a run. Figures are medians over finished runs, with the range below them where "
        "several runs differ; runs that are going on, were cut off or failed are listed, not counted. A time marked > "
        "is of a run that ended before its target was reached: the true time is longer.",
    )
