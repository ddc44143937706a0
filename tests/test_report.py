"""The report: what it reads, what it counts, what it claims, and what it does with damaged or hostile folders."""

import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from rich.console import Console

from hpcasync.errors import UsageError
from hpcasync.report import plot
from hpcasync.report.groups import settings
from hpcasync.report.html import page, tag, verdict
from hpcasync.report.main import report
from hpcasync.report.plot import CURVE_POINTS
from hpcasync.report.read import find_runs, read_metrics, read_run
from hpcasync.report.statistics import Ratio, Value, decimate, moving_median, ratio, spread
from hpcasync.report.table import columns, percent, significant, terminal


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


def cells(root: Path) -> dict[str, dict[str, str]]:
    """{strategy: {column: figure, or figure and range}} of the only setting below root."""
    (setting,) = settings([read_run(folder) for folder in find_runs([root])])
    shown = {}
    for group in setting.groups:
        row = [(column.title, column.cell(setting, group)) for column in columns(setting)]
        shown[group.label] = {title: f"{cell.figure} {cell.range}".strip() for title, cell in row}
    return shown


# Statistics


def test_spread_is_the_median_and_the_range() -> None:
    result = spread([Value(3.0), Value(1.0), Value(2.0)])
    assert result is not None
    assert (result.n, result.median, result.low, result.high) == (3, Value(2.0), Value(1.0), Value(3.0))
    assert spread([]) is None


@pytest.mark.parametrize(
    ("values", "median"),
    [
        ([Value(9.0, True)], Value(9.0, True)),
        ([Value(1.0), Value(2.0), Value(9.0, True)], Value(2.0)),  # the censored one is above the median anyway
        ([Value(1.0), Value(9.0, True), Value(9.0, True)], Value(9.0, True)),
        ([Value(1.0), Value(9.0, True)], Value(5.0, True)),  # at least (1 + 9) / 2
        ([Value(10.0), Value(20.0), Value(5.0, True)], Value(10.0, True)),  # between 10 and 20
    ],
)
def test_median_with_censored_runs_is_exact_or_a_lower_bound(values: list[Value], median: Value) -> None:
    result = spread(values)
    assert result is not None and result.median == median


@given(st.lists(st.tuples(st.floats(0.1, 100), st.booleans(), st.floats(0, 100)), min_size=1))
def test_censored_median_never_exceeds_the_true_one(runs: list[tuple[float, bool, float]]) -> None:
    result = spread([Value(seen, censored) for seen, censored, _ in runs])
    truth = float(np.median([seen + censored * later for seen, censored, later in runs]))
    assert result is not None
    if result.median.censored:
        assert result.median.value <= truth + 1e-9
    else:
        assert result.median.value == pytest.approx(truth)


def test_ratio_gives_a_range_only_where_both_sides_repeat() -> None:
    one, two = spread([Value(6.0)]), spread([Value(2.0), Value(4.0)])
    assert ratio(one, two) == Ratio(2.0, None, None)
    assert ratio(two, one) == Ratio(0.5, None, None)
    assert ratio(two, two) == Ratio(1.0, 0.5, 2.0)
    assert ratio(one, None) is None
    assert ratio(one, spread([Value(0.0)])) is None
    assert ratio(one, spread([Value(1.0, True)])) is None


def test_decimate_keeps_both_ends_and_the_limit() -> None:
    assert decimate(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert decimate(101, 3).tolist() == [0, 50, 100]
    assert len(decimate(10**6, CURVE_POINTS)) == CURVE_POINTS


def test_moving_median_takes_fewer_values_at_the_ends() -> None:
    values = np.array([5.0, 1.0, 2.0, 9.0, 3.0])
    assert moving_median(values, 3, np.arange(5)).tolist() == [3.0, 2.0, 2.0, 3.0, 6.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3.2, "3.20"), (0.031, "0.0310"), (12.34, "12.3"), (999.4, "999"), (999.6, "1,000"), (1604.2, "1,604")],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_percent() -> None:
    assert [percent(v) for v in (0, 0.031, 0.31, 0.996)] == ["0 %", "3.1 %", "31 %", "100 %"]


# Reading


def test_a_torn_last_line_is_skipped_and_a_broken_one_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "metrics.rank3.jsonl"
    file.write_text('{"step": 1, "seconds": 0.5, "loss": 2}\nbroken\n{"step": 2, "seconds": 1}\n{"step": 3, "sec')
    metrics = read_metrics(file)
    assert (metrics.rank, metrics.unreadable) == (3, 1)
    assert metrics.columns["step"].tolist() == [1, 2]
    assert metrics.columns["loss"][0] == 2 and np.isnan(metrics.columns["loss"][1])


def test_a_whole_last_line_without_its_newline_counts(tmp_path: Path) -> None:
    file = tmp_path / "metrics.rank0.jsonl"
    file.write_text('{"step": 1, "seconds": 0.5}')
    assert read_metrics(file).columns["step"].tolist() == [1]


def test_evaluations_and_numbers_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "metrics.rank0.jsonl"
    lines = [
        '{"step": 1, "seconds": 0.5, "evaluation": {"accuracy": 0.5, "note": "x"}}',
        '{"step": 1, "seconds": 0.5, "evaluation": 3}',
        '{"step": true, "seconds": 0.5}',
        '{"step": 1, "seconds": Infinity}',
        '{"step": 1, "seconds": 1, "loss": 1' + "0" * 400 + "}",
        "[" * 100_000,
        "[]",
        "",
    ]
    file.write_text("\n".join(lines))
    metrics = read_metrics(file)
    assert metrics.unreadable == 4
    assert [e.values.get("accuracy") for e in metrics.evaluations] == [0.5, None]
    assert np.isnan(metrics.columns["loss"]).all() and len(metrics.columns["loss"]) == 1


@given(st.binary(max_size=400))
def test_no_bytes_in_a_metrics_file_raise(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "metrics.rank0.jsonl"
    file.write_bytes(content)
    metrics = read_metrics(file)
    assert len(metrics.columns["step"]) + len(metrics.evaluations) + metrics.unreadable <= content.count(b"\n") + 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["schema", *document("x")]), JSON))
def test_any_json_in_run_json_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any_json"
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(document("x") | changes))
    try:
        run = read_run(folder)
    except UsageError as error:
        assert str(folder / "run.json") in str(error)
    else:
        page(settings([run]), []).encode("utf-8")


NUMBERS = st.floats(width=32) | st.integers(-(10**6), 10**6) | st.none() | st.text(max_size=3)
LINES = st.fixed_dictionaries(
    {"step": NUMBERS, "seconds": NUMBERS},
    optional={"loss": NUMBERS, "staleness": NUMBERS, "evaluation": st.dictionaries(st.just("accuracy"), NUMBERS)},
)


@examples(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(LINES, max_size=6))
def test_any_numbers_can_be_drawn(tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]]) -> None:
    root = tmp_path_factory.mktemp("numbers")
    folder = write(root, document("x"))
    (folder / "metrics.rank0.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page(settings([read_run(folder)]), [])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object, found list"),
        ("[" * 100_000, "not valid JSON"),
        ('{"schema": "hpcasync.run/9"}', "schema is 'hpcasync.run/9', expected 'hpcasync.run/1'"),
        (json.dumps(document("x") | {"world": {"size": "4"}}), "'size' should be a whole number, found '4'"),
        (json.dumps(document("x") | {"world": {"size": True}}), "'size' should be a whole number, found True"),
        (json.dumps(document("x") | {"world": {"size": 0}}), "world size is 0, expected at least 1"),
        (json.dumps(document("x") | {"strategy": "sync"}), "'strategy' should be an object, found 'sync'"),
        (json.dumps(document("x") | {"job": None}), "'job' should be a text, found nothing"),
    ],
)
def test_a_bad_run_json_is_refused_in_words_that_name_the_file(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UsageError, match=re.escape(words)) as refused:
        read_run(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'run.json'}: ")


def test_a_bad_run_is_one_line_and_the_others_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, document("good"))
    bad = tmp_path / "bad" / "run.json"
    bad.parent.mkdir()
    bad.write_text('{"schema": "two\\nlines"}')
    html = report([tmp_path]).read_text()
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith(f"hpcasync: skipped {bad}: schema is ")
    assert "good" in html and str(bad) in html


def test_nothing_to_report_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        report([tmp_path / "absent"])
    with pytest.raises(UsageError, match=re.escape(f"no run.json in {tmp_path} nor in the two levels")):
        report([tmp_path])
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UsageError, match="none of the 1 runs found could be read"):
        report([tmp_path])
    assert not (tmp_path / "report.html").exists()


def test_runs_are_found_two_levels_down_and_once(tmp_path: Path) -> None:
    one = write(tmp_path, document("one"))
    two = write(tmp_path / "group", document("two"))
    write(tmp_path / "far" / "too" / "deep", document("three"))
    assert find_runs([tmp_path, one, two]) == [two, one]
    assert find_runs([one]) == [one]


def test_hundred_thousand_lines_become_two_thousand_points(tmp_path: Path) -> None:
    (setting,) = settings([read_run(write(tmp_path, document("long"), ranks=1, steps=100_000))])
    longest = max(re.findall(r' d="([^"]*)"', plot.losses(setting)), key=len)
    assert longest.count("L") < CURVE_POINTS


# Counting and comparing


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


# The page


HOSTILE = "<script>alert(1)</script> $x$ \u202e\x1b[31m & \ud800"


def test_everything_from_files_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, document("base"))
    bad = document(HOSTILE, HOSTILE, argv=[HOSTILE], hosts=[{"rank": HOSTILE, HOSTILE: HOSTILE}], job="digits")
    bad["git"] = {"commit": HOSTILE}
    bad["environment"] = bad["packages"] = {HOSTILE: HOSTILE}
    bad["strategy"]["options"] = {HOSTILE: [HOSTILE, {HOSTILE: None}]}
    write(tmp_path, bad)
    html = report([tmp_path]).read_text(encoding="utf-8")
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 8
    assert not set("\x1b\u202e") & set(html + capsys.readouterr().out)


def test_tag_escapes_text_and_attributes() -> None:
    assert tag("p", "a<b", tag("i", "&"), class_='"x"') == '<p class="&quot;x&quot;">a&lt;b<i>&amp;</i></p>'


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    write(tmp_path, document("a"))
    write(tmp_path, document("b", "stale"))
    html = report([tmp_path]).read_text()
    without_namespaces = re.sub(r'xmlns(:xlink)?="[^"]*"', "", html)
    assert not re.search(r"https?:|//|<link|<script|<img|@import|url\((?!#)", without_namespaces)
    assert html.count("<svg") == 4
    assert "currentColor" in html and "#0a0" not in html
    identities = re.findall(r' id="([^"]+)"', html)
    assert len(identities) == len(set(identities))


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    write(tmp_path, document("a"))
    write(tmp_path, document("b", "stale"))
    assert report([tmp_path]).read_bytes() == report([tmp_path]).read_bytes()


def test_the_page_is_written_where_it_was_asked_for_and_replaces_only_pages(tmp_path: Path) -> None:
    folder = write(tmp_path, document("a"))
    target = tmp_path / "page.html"
    assert report([folder], target) == target == report([folder], target)
    assert report([folder]) == folder / "report.html"
    before = (folder / "run.json").read_bytes()
    with pytest.raises(UsageError, match="exists and is not a report"):
        report([folder], folder / "run.json")
    assert (folder / "run.json").read_bytes() == before
    with pytest.raises(UsageError, match="is a folder; give the name of a file"):
        report([folder], tmp_path)
    with pytest.raises(UsageError, match="is not a folder; the page cannot be written there"):
        report([folder], tmp_path / "absent" / "page.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "page.html"]


def test_labels_of_curves_that_end_alike_keep_their_distance() -> None:
    heights = plot._apart([0.1, 0.96, 0.97, 0.98], 0.1)
    assert heights == pytest.approx([0.1, 0.8, 0.9, 1.0])


def test_figures_are_files_that_stand_alone(tmp_path: Path) -> None:
    write(tmp_path / "runs", document("a"))
    write(tmp_path / "runs", document("b", "downpour"))
    report([tmp_path / "runs"], tmp_path / "page.html", tmp_path / "figures")
    files = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert files == ["evaluations-1.svg", "losses-1.svg", "staleness-1.svg", "throughput-1.svg"]
    for name in files:
        root = ElementTree.parse(tmp_path / "figures" / name).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme: dark" in (root[0].text or "")
