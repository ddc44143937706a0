"""What the report reads: metrics and run.json, torn, damaged, or of any content at all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from hpcasync.errors import UsageError
from hpcasync.report import plot
from hpcasync.report.groups import settings
from hpcasync.report.html import page
from hpcasync.report.main import report
from hpcasync.report.plot import CURVE_POINTS
from hpcasync.report.read import find_runs, read_metrics, read_run
from tests.report_runs import document, write


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


@examples(max_examples=8)
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
    with pytest.raises(UsageError, match=re.escape(f"no run.json in {tmp_path} nor in the 2 levels")):
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
    assert find_runs([tmp_path], levels=1) == [one]
    with pytest.raises(UsageError, match="nor in one level of folders below"):
        find_runs([tmp_path / "far"], levels=1)


def test_hundred_thousand_lines_become_two_thousand_points(tmp_path: Path) -> None:
    (setting,) = settings([read_run(write(tmp_path, document("long"), ranks=1, steps=100_000))])
    longest = max(re.findall(r' d="([^"]*)"', plot.losses(setting)), key=len)
    assert longest.count("L") < CURVE_POINTS
