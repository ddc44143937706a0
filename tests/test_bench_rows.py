"""A bench's rows: medians and ratios in closed form, their table, their file and their plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.bench import verbs
from hpcasync.bench.benches import BENCHES
from hpcasync.bench.folder import Folder
from hpcasync.bench.plot import draw
from hpcasync.bench.rows import Row, Sample, make_rows
from hpcasync.bench.rows_file import check_rows
from hpcasync.bench.table import lines, markdown
from hpcasync.errors import UsageError

REFERENCES = {"none": "speed", "absent": "speed"}


def sample(subject: str, repeat: int, value: float | None, **more: Any) -> Sample:
    return Sample(
        **{"case": "sleep", "metric": "speed", "unit": "1/s"} | more, subject=subject, repeat=repeat, value=value
    )


def one(rows: list[Row], subject: str, metric: str) -> Row:
    (row,) = [row for row in rows if (row.subject, row.metric) == (subject, metric)]
    return row


def test_a_row_is_the_median_of_its_runs() -> None:
    rows = make_rows("straggler", [sample("none", i, value) for i, value in enumerate((3.0, 9.0, 4.0))], REFERENCES)
    assert [row.entry() for row in rows] == [
        {
            "bench": "straggler",
            "case": "sleep",
            "subject": "none",
            "metric": "speed",
            "value": 4.0,
            "unit": "1/s",
            "runs": [3.0, 9.0, 4.0],
        }
    ]


def test_ratios_are_taken_within_a_repeat() -> None:
    values = {"none": (10.0, 20.0, 40.0), "eager": (9.0, 10.0, 36.0)}
    samples = [sample(name, i, value) for name, series in values.items() for i, value in enumerate(series)]
    rows = make_rows("straggler", samples, REFERENCES)
    assert one(rows, "eager", "ratio_to_none").runs == (0.9, 0.5, 0.9)
    assert one(rows, "eager", "ratio_to_none").value == 0.9
    assert [row.metric for row in rows if row.subject == "none"] == ["speed"]


def test_a_failed_repeat_is_left_out_and_told() -> None:
    samples = [sample("none", 0, 10.0), sample("none", 1, 10.0)]
    samples += [sample("sync", 0, None, error="no result within 9 s"), sample("sync", 1, 5.0)]
    samples += [sample("stale", repeat, None, error="rank 1: KeyError") for repeat in (0, 1)]
    rows = make_rows("straggler", samples, REFERENCES)
    assert one(rows, "sync", "speed").entry()["error"] == "no result within 9 s"
    assert one(rows, "sync", "ratio_to_none").runs == (0.5,)
    failed = one(rows, "stale", "speed")
    assert (failed.value, failed.runs, failed.error) == (None, (), "2 times, first: rank 1: KeyError")
    assert not [row for row in rows if row.subject == "stale" and row.metric != "speed"]


def test_only_the_metric_of_the_reference_is_compared() -> None:
    samples = [sample("none", 0, 2.0), sample("none", 0, 1.0, metric="cost"), sample("sync", 0, 3.0, metric="cost")]
    assert [row.metric for row in make_rows("b", samples, REFERENCES)] == ["speed", "cost", "cost"]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["none", "x", "y"]), st.floats(1e-3, 1e3)), min_size=1)
)
def test_every_value_is_in_exactly_one_row(given: list[tuple[str, str, float]]) -> None:
    samples = [sample(subject, i, value, case=case) for i, (case, subject, value) in enumerate(given)]
    rows = make_rows("b", samples, REFERENCES)
    measured = [row for row in rows if row.metric == "speed"]
    assert sorted(value for row in measured for value in row.runs) == sorted(value for _, _, value in given)
    cases = [row.case for row in rows]
    assert cases == sorted(cases, key=cases.index)  # a case's rows stand together


def test_the_table_names_medians_ranges_ratios_and_failures() -> None:
    samples = [sample("none", 0, 10.0), sample("none", 1, 20.0), sample("a|b", 0, 5.0), sample("a|b", 1, 10.0)]
    samples += [sample("sync", 0, None, error="ended with exit code 1")]
    rows = make_rows("b", samples, REFERENCES)
    titles, cells = lines(rows)
    assert titles == ["case", "subject", "median", "unit", "range", "÷ none"]
    assert cells[0] == ["sleep", "none", "15.0", "samples/s", "10.0 to 20.0", "–"]
    assert cells[1] == ["sleep", "a|b", "7.50", "samples/s", "5.00 to 10.0", "0.500"]
    assert cells[2][4] == "failed: ended with exit code 1"
    assert markdown(rows).splitlines()[3].startswith("| sleep | a\\|b | 7.50 |")


def test_metrics_are_named_where_a_case_has_several() -> None:
    rows = make_rows("b", [sample("none", 0, 1.0), sample("none", 0, 0.9, metric="accuracy")], {})
    assert lines(rows)[0] == ["case", "subject", "metric", "median", "unit", "range"]
    assert [cells[2] for cells in lines(rows)[1]] == ["speed", "accuracy"]


def test_only_a_benchs_rows_are_replaced(tmp_path: Path) -> None:
    rows, other, empty = tmp_path / "rows.json", tmp_path / "other.json", tmp_path / "empty.json"
    rows.write_text('[{"bench": "world"}]')
    empty.touch()
    other.write_text("my thesis")
    for usable in (rows, empty, tmp_path / "new.json"):
        check_rows(usable)
    with pytest.raises(UsageError, match="does not hold a bench's rows"):
        check_rows(other)
    with pytest.raises(UsageError, match="is a folder"):
        check_rows(tmp_path)


def test_a_plot_is_drawn_of_world(tmp_path: Path) -> None:
    def made(case: str, subject: str, metric: str, value: float) -> Sample:
        return Sample(case, subject, metric, "", 0, value)

    samples = [made("push 1 MiB", name, verbs.BANDWIDTH, 1.0) for name in (verbs.OURS, verbs.COPY)]
    samples += [made("allreduce 4 KiB", name, verbs.ALLREDUCE, 1.0) for name in (verbs.OURS, verbs.MPI_RAW)]
    draw(make_rows("world", samples, BENCHES["world"].references), tmp_path / "plot")
    assert "allreduce 4 KiB" in (tmp_path / "plot.svg").read_text()
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_nothing_to_draw(tmp_path: Path) -> None:
    draw([], tmp_path / "plot")
    assert not list(tmp_path.iterdir())
    assert not Folder(tmp_path, "world", "").finish([], None)
