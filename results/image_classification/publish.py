"""Publish the demo's runs: their raw data, the pictures and the page in this folder, and the README's table.

    python results/image_classification/publish.py results/demo      # make headline: the demo first, then this
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import sys
from pathlib import Path

from hpcasync.report.groups import Group, Setting, settings
from hpcasync.report.main import report
from hpcasync.report.plot import colour
from hpcasync.report.read import RunRecord, find_runs, read_run
from hpcasync.report.svg import alone, figure, render, series
from hpcasync.report.table import cell, percent, significant

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
FIGURES = {"evaluations-1.svg": "accuracy.svg", "throughput-1.svg": "throughput.svg"}


def seconds(group: Group) -> dict[int, float]:
    """{seed: seconds to the target}."""
    return {run.config["seed"]: run.summary["seconds_to_target"] for run in group.finished}


def with_range(values: list[float]) -> str:
    return f"{significant(statistics.median(values))} ({significant(min(values))} to {significant(max(values))})"


def row(setting: Setting, group: Group) -> list[str]:
    base, own = seconds(setting.baseline), seconds(group)
    gains = [base[seed] / own[seed] for seed in sorted(own.keys() & base.keys())]
    staleness, largest = group.spread("staleness_mean"), group.spread("staleness_max")
    return [
        f"`{group.strategy}`",
        f"{group.finished[0].config['lr']:g}",
        str(len(own)),
        with_range(list(own.values())),
        "1" if group is setting.baseline else with_range(gains),
        cell(group.spread("samples_per_second"), significant).figure,
        cell(group.spread("ideal_share"), percent).figure,
        f"{staleness.median.value:.1f} ({largest.high.value:.0f})",
    ]


def table(setting: Setting) -> str:
    titles = ["strategy", "step size", "seeds", f"seconds to {setting.target:g}", "times sooner than sync", "samples/s"]
    titles += ["share of the ideal sum of speeds", "staleness, mean (largest)"]
    rows = [titles, ["---", *["--:" for _ in titles[1:]]], *(row(setting, group) for group in setting.groups)]
    return "".join(f"| {' | '.join(line)} |\n" for line in rows)


def step_sizes() -> str:
    """Medians and ranges of what make step-sizes has found; – where a seed did not reach the target."""
    document = json.loads((HERE / "step_sizes.json").read_text())
    cells: dict[str, dict[float, list[float | None]]] = {}
    for entry in document["rows"]:
        cells.setdefault(entry["strategy"], {})[entry["lr"]] = entry["seconds_to_target"]
    rates = list(next(iter(cells.values())))
    lines = [["strategy", *map(str, rates)], ["---", *["--:" for _ in rates]]]
    for strategy, found in cells.items():
        reached = {rate: values for rate, values in found.items() if values and None not in values}
        best = min(reached, key=lambda rate: statistics.median(reached[rate]))
        told = {rate: with_range(values) for rate, values in reached.items()}
        told[best] = f"**{told[best]}**"
        lines.append([f"`{strategy}`", *(told.get(rate, "–") for rate in rates)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def machine(runs: list[RunRecord]) -> str:
    """Commit, machine, versions, and how busy the machine was."""
    first = runs[0].document
    commits = {run.document["git"]["commit"][:7] for run in runs}
    loads = [host["load"] for run in runs for host in run.document["hosts"]]
    cpus = len(first["hosts"][0]["affinity"])
    return (
        f"commit {', '.join(sorted(commits))}, {cpus} cores of {first['hosts'][0]['cpu']}, {first['world']['library']}, "
        f"torch {first['packages']['torch']}. Load average of the last minute when the runs began: "
        f"{statistics.median(loads):.1f} (median; {min(loads):.1f} to {max(loads):.1f})"
    )


def between(text: str, name: str, new: str) -> str:
    """``text`` with ``new`` between the marks of that name."""
    mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    assert mark.search(text), f"there are no marks {name}"
    return mark.sub(lambda found: found[1] + new + found[2], text)


def copy(runs: list[RunRecord]) -> None:
    """The runs' folders, in place of those published before."""
    for old in HERE.glob("*/run.json"):
        shutil.rmtree(old.parent)
    for run in runs:
        shutil.copytree(run.folder, HERE / run.folder.name, ignore=shutil.ignore_patterns("ckpt*", "checkpoint*"))


def draw(setting: Setting) -> str:
    """An SVG file's text: seconds to the target, a line per strategy, a dot per seed, a stroke at the median."""
    with figure(1, 0.9 + 0.4 * len(setting.groups)) as (drawn, (axes,)):
        for place, group in enumerate(setting.groups):
            shade, values = series(colour(setting, group)), list(seconds(group).values())
            axes.plot(values, [place] * len(values), "o", color=shade, alpha=0.6, markersize=5)
            axes.plot([statistics.median(values)] * 2, [place - 0.3, place + 0.3], color=shade, linewidth=2.5)
        axes.set_yticks(range(len(setting.groups)), [group.strategy for group in setting.groups])
        axes.set_ylim(len(setting.groups) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"seconds to {setting.target:g}; a dot per seed, a stroke at the median")
        return alone(render(drawn, "demo", "seconds to the target, by strategy"))


def publish(demo: Path) -> None:
    runs = [read_run(folder) for folder in find_runs([demo])]
    (setting,) = settings(runs)
    late = [run.name for run in runs if run.status != "done" or "seconds_to_target" not in run.summary]
    if late:
        sys.exit(f"not published: no time to the target in {', '.join(late)}")
    copy(runs)
    report([demo], figures=demo / "figures")
    for name, here in FIGURES.items():
        shutil.copy(demo / "figures" / name, HERE / here)
    (HERE / "seconds.svg").write_text(draw(setting))
    told = ", ".join(f"{g.strategy} {significant(statistics.median(seconds(g).values()))} s" for g in setting.groups)
    picture = (
        f"Seconds until {setting.target:g} of the held-out digits are recognised, 4 ranks of which one is 4 times slower; "
        f"medians: {told}"
    )
    for page, prefix in ((README, "results/image_classification/"), (HERE / "README.md", "")):
        text = between(page.read_text(), "demo", "\n" + table(setting) + "\n")
        text = between(text, "picture", f"![{picture}]({prefix}seconds.svg)\n")
        if page is not README:
            text = between(text, "machine", f"{machine(runs)}.\n")
            text = between(text, "step-sizes", "\n" + step_sizes() + "\n")
        page.write_text(text)


publish(Path(sys.argv[1]))
