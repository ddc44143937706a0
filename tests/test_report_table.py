"""What the report counts, compares and claims: its table, and its verdicts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hpcasync.report.groups import settings
from hpcasync.report.html import verdict
from hpcasync.report.main import report
from hpcasync.report.read import find_runs, read_run
from hpcasync.report.table import columns, terminal
from tests.report_runs import document, write


def cells(root: Path) -> dict[str, dict[str, str]]:
    """{strategy: {column: figure, or figure and range}} of the only setting below root."""
    (setting,) = settings([read_run(folder) for folder in find_runs([root])])
    shown = {}
    for group in setting.groups:
        row = [(column.title, column.cell(setting, group)) for column in columns(setting)]
        shown[group.label] = {title: f"{cell.figure} {cell.range}".strip() for title, cell in row}
    return shown


def test_the_table_of_two_strategies_with_one_run_each(tmp_path: Path) -> None:
    write(tmp_path, document("a"))
    changes = {"samples_per_second": 305.0, "ideal_share": 0.94, "staleness_mean": 2.98, "staleness_max": 8.0}
    other = document("b", summary=changes | {"wait_share": 0.02, "seconds_to_target": 2.5})
    write(tmp_path, other | {"strategy": {"name": "downpour", "options": {"pull": 4}}})
    assert cells(tmp_path) == {
        "sync": {
            "runs": "1",
            "accuracy": "0.9700",
            "seconds to target": "8.00",
            "samples/s": "100",
            "ratio to sync": "1",
            "ideal share": "31 %",
            "staleness mean": "0.00",
            "staleness max": "0",
            "wait share": "60 %",
            "steps": "40",
        },
        "downpour pull=4": {
            "runs": "1",
            "accuracy": "0.9700",
            "seconds to target": "2.50",
            "samples/s": "305",
            "ratio to sync": "3.05",
            "ideal share": "94 %",
            "staleness mean": "2.98",
            "staleness max": "8",
            "wait share": "2.0 %",
            "steps": "40",
        },
    }


def test_repeated_runs_give_median_range_and_censored_times(tmp_path: Path) -> None:
    for seed, (rate, reached) in enumerate([(100.0, 8.0), (110.0, None), (130.0, 9.0)]):
        summary = {"samples_per_second": rate, "seconds_to_target": reached, "seconds": 12.0, "staleness_max": seed}
        write(tmp_path, document(f"r{seed}", config={"seed": seed}, summary=summary))
    row = cells(tmp_path)["sync"]
    assert row["runs"] == "3"
    assert row["samples/s"] == "110 100 to 130"
    assert row["seconds to target"] == "9.00 8.00 to >12.0"
    assert row["staleness max"] == "2"
    assert row["accuracy"] == "0.9700"


def test_a_single_run_that_missed_its_target_is_censored_and_without_a_target_it_is_absent(tmp_path: Path) -> None:
    missed = {"seconds_to_target": None, "seconds": 12.0}
    write(tmp_path / "a", document("x", summary=missed))
    assert cells(tmp_path / "a")["sync"]["seconds to target"] == ">12.0"
    write(tmp_path / "b", document("x", summary=missed, config={"target": None}))
    assert cells(tmp_path / "b")["sync"]["seconds to target"] == "\N{EN DASH}"


def test_unfinished_runs_are_named_and_never_counted(tmp_path: Path) -> None:
    write(tmp_path, document("done", config={"seed": 0}))
    write(tmp_path, document("says_done", config={"seed": 1}, summary={"samples_per_second": 9e9}), done=False)
    write(tmp_path, document("going", config={"seed": 2}, status="running"), done=False)
    failed = write(tmp_path, document("broke", config={"seed": 3}, status="failed"))
    (failed / "FAILED.json").write_text(json.dumps({"rank": 2, "error": "RuntimeError: <b>", "traceback": ""}))
    row = cells(tmp_path)["sync"]
    assert row["runs"] == "1 2 running, 1 failed"
    assert row["samples/s"] == "100"
    html = report([tmp_path]).read_text()
    assert "rank 2: RuntimeError: &lt;b&gt;" in html
    assert "Runs: 1 finished, 2 running or cut off, 1 failed." in html


def test_a_report_of_unfinished_runs_alone_has_no_figures(tmp_path: Path) -> None:
    write(tmp_path, document("a", status="running"), done=False)
    write(tmp_path, document("b", "stale", status="running"), done=False)
    assert cells(tmp_path)["stale"]["samples/s"] == "\N{EN DASH}"
    html = report([tmp_path]).read_text()
    assert "<svg" not in html and "No finished run to compare." in html


def test_only_runs_of_the_same_work_are_compared(tmp_path: Path) -> None:
    runs = [
        document("a"),
        document("b", "stale", config={"lr": 0.2}),  # tuned, the work is the same
        document("c", "stale", config={"slow": []}),
        document("d", "stale", world={"kind": "mpi", "size": 2}),
        document("e", "stale", world={"kind": "sim", "size": 4}),
        document("f", "stale", job="words"),
    ]
    found = settings([read_run(write(tmp_path, run)) for run in runs])
    groups = {setting.title: [group.label for group in setting.groups] for setting in found}
    assert groups == {
        "digits, 2 ranks, slow 3:4": ["stale"],
        "digits, 4 ranks, no slow": ["stale"],
        "digits, 4 ranks, slow 3:4": ["sync lr 0.1", "stale lr 0.2"],
        "digits, 4 simulated ranks, slow 3:4": ["stale"],
        "words, 4 ranks, slow 3:4": ["stale"],
    }


def test_a_job_is_judged_by_the_first_metric_of_its_own(tmp_path: Path) -> None:
    run = document("a")
    run["summary"] = {"perplexity": {"value": 3.5}, "loss": {"value": 1.25}, **run["summary"]}
    del run["summary"]["accuracy"]
    assert read_run(write(tmp_path, run)).summary["perplexity"] == 3.5
    assert cells(tmp_path)["sync"]["perplexity"] == "3.5000"


def test_ranks_of_the_same_host_share_a_line(tmp_path: Path) -> None:
    hosts = [{"rank": rank, "host": "n1" if rank else "n0", "load": 1.0} for rank in range(12)]
    html = report([write(tmp_path, document("a", hosts=hosts))]).read_text()
    assert "<dt>rank 0</dt><dd><code>host n0, load 1</code>" in html
    assert "<dt>11 ranks, 1 to 11</dt><dd><code>host n1, load 1</code>" in html


@pytest.mark.parametrize(("width", "kept"), [(200, 11), (80, 9), (20, 5)])
def test_a_narrow_terminal_loses_columns_and_no_digits(tmp_path: Path, width: int, kept: int) -> None:
    (setting,) = settings([read_run(write(tmp_path, document("a", summary={"samples_per_second": 1234567.0})))])
    console = Console(width=width, file=io.StringIO())
    table = terminal(setting, console)
    assert len(table.columns) == kept
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    assert width == 20 or "1,234,567" in console.file.getvalue()


def test_ranges_stay_whole_at_eighty_columns(tmp_path: Path) -> None:
    runs = [document(f"r{s}", config={"seed": s}, summary={"samples_per_second": 1e6 + s}) for s in range(2)]
    (setting,) = settings([read_run(write(tmp_path, run)) for run in runs])
    console = Console(width=80, file=io.StringIO())
    console.print(terminal(setting, console))
    assert isinstance(console.file, io.StringIO)
    assert "1,000,000 to 1,000,001" in console.file.getvalue()


def test_verdicts_say_what_they_rest_on(tmp_path: Path) -> None:
    def said(*runs: dict[str, Any]) -> str:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        (setting,) = settings([read_run(write(root, run)) for run in runs])
        return verdict(setting, setting.groups[1])

    def run(strategy: str, seed: int, **summary: float | None) -> dict[str, Any]:
        return document(f"{strategy}{seed}", strategy, config={"seed": seed}, summary=summary)

    assert said(run("sync", 0), run("stale", 0, seconds_to_target=2.0, accuracy=0.96)) == (
        "Reached accuracy 0.95 in 2.00 s; sync took 8.00 s. Final accuracy 0.9600; sync 0.9700. "
        "1 run each: no interval."
    )
    missed = said(run("sync", 0), run("stale", 0, seconds_to_target=None, seconds=30.0))
    assert missed.startswith("Did not reach accuracy 0.95 within 30.0 s; sync took 8.00 s.")
    mixed = said(run("sync", 0), run("stale", 0), run("stale", 1))
    assert mixed.endswith("Runs: 2 against 1; with a single run on one side, no interval.")
    apart = [run("stale", seed, samples_per_second=300.0 + seed) for seed in range(2)]
    base = [run("sync", seed) for seed in range(2)]
    assert said(*base, *apart).endswith(
        "Medians of 2 and 2 runs. The ranges of samples/s do not overlap; no test was made."
    )
    assert said(*base, run("stale", 0), run("stale", 1)).endswith("The ranges of samples/s overlap; no test was made.")
