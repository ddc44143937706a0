"""hpcasync simulate on the command line: mistakes, rows, tables."""

from __future__ import annotations

import math

import pytest

from hpcasync.errors import UsageError
from hpcasync.simulate.main import main
from hpcasync.simulate.problems import Tridiagonal
from hpcasync.simulate.result import grid_table, table
from hpcasync.simulate.trial import Outcome
from tests.simulate_trials import attempt, run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--ranks 0", "--ranks 0: it must be 1 or more"),
        ("--ranks-per-node 0", "--ranks-per-node 0: it must be 1 or more"),
        ("--ranks 4 --ranks-per-node 2 --strategy hogwild", "hogwild needs all 4 ranks on one node (this node has 2)"),
        ("--seconds 0", "--seconds 0.0: it must be a positive number"),
        ("--until 1", "--until 1.0: it must be above 0 and below 1"),
        ("--lr 0", "--lr 0: it must be a positive number, or auto"),
        ("--lr fast", "--lr fast: it must be a positive number, or auto"),
        ("--lr auto", "--lr auto needs --until TOL"),
        ("--compute sometimes", "law 'sometimes' is unknown"),
        ("--ranks 3 --compute slow:3:2", "--compute slow:3:2: the ranks are 0 to 2"),
        ("--alpha -1", "--alpha -1.0: it must be 0 or more, and finite"),
        ("--beta inf", "--beta inf: it must be 0 or more"),
        ("--noise nan", "--noise nan: it must be 0 or more"),
        ("--momentum 1", "--momentum 1.0: it must be 0 or more, and below 1"),
        ("--batch-size -1", "--batch-size -1: it must be 1 or more, or 0"),
        ("--seed -1", "--seed -1: it must be 0 or more"),
        ("--strategy magic", "unknown strategy 'magic'"),
        ("--problem csv", "--problem csv and --data FILE go together"),
        ("--data x.csv", "--problem csv and --data FILE go together"),
        ("--problem csv --data nowhere.csv", "it cannot be read (No such file"),
        ("--json .", "--json .: it is a folder"),
        ("--from nowhere", "run.json: cannot be read"),
        ("--from nowhere --compute sqrt", "--compute sqrt: --from says how long steps take"),
        ("--rank 3", "unknown option --rank"),
    ],
)
def test_mistakes(words, message):
    with pytest.raises(UsageError) as error:
        main(words.split())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_of_the_command(tmp_path, capsys):
    found = run("--ranks 3 --compute slow:0:2 --strategy downpour bound=8 --lr 0.2 --until 0.05", tmp_path)
    assert {(row["bench"], row["case"], row["subject"]) for row in found.values()} == {
        ("simulate", "tridiagonal, 3 ranks, slow:0:2", "downpour bound=8")
    }
    assert found["updates_per_second"]["value"] == pytest.approx(2.5, rel=0.1)
    assert found["dropped"]["value"] == 0
    assert found["learning_rate"]["value"] == 0.2
    assert found["cpu_seconds"]["value"] > 0
    histogram = {
        int(name.removeprefix("staleness_")): row["value"]
        for name, row in found.items()
        if name.startswith("staleness_") and name[-1].isdigit()
    }
    # the last update ends it all, between the update of another rank and its push, perhaps
    assert 0 <= found["updates"]["value"] - sum(histogram.values()) < 3
    assert max(histogram) == found["staleness_max"]["value"]
    assert "virtual s" in capsys.readouterr().out


def test_a_tolerance_out_of_reach_is_said_and_is_null(tmp_path, capsys):
    row = run("--lr 0.001 --until 1e-6 --seconds 20", tmp_path)["seconds_to_tolerance"]
    assert row["value"] is None
    assert row["runs"] == []
    assert "not reached within 20.0 s" in row["error"]
    assert "not reached within 20.0 s" in capsys.readouterr().out


@pytest.mark.parametrize("problem", ["logistic", "heterogeneous", "csv"])
def test_every_problem_is_solved_with_the_step_size_that_is_found(problem, tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("".join(f"{i % 7},{i % 5},{2 * (i % 7) - i % 5}\n" for i in range(40)))
    extra = f" --data {table}" if problem == "csv" else ""
    found = run(f"--problem {problem} --ranks 2 --batch-size 0 --until 0.05 --seconds 300{extra}", tmp_path)
    assert 0 < found["seconds_to_tolerance"]["value"] < 300
    assert "best" in capsys.readouterr().out


def test_an_interrupt_ends_it(monkeypatch):
    def interrupted(self, x, rank, rng):
        raise KeyboardInterrupt

    monkeypatch.setattr(Tridiagonal, "gradient", interrupted)
    assert main(["--lr", "0.1", "--seconds", "5"]) == 130


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "hpcasync simulate --problem tridiagonal" in capsys.readouterr().out


def test_tables_show_what_was_not_reached():
    outcomes = {0.1: Outcome(seconds=5.0), 0.2: Outcome(seconds_to_tolerance=3.0), 0.4: Outcome(gap=math.inf)}
    columns = [list(column.cells) for column in grid_table(outcomes, 0.2).columns]
    assert columns == [["0.1", "0.2", "0.4"], [">5.00", "3.00", ""], ["", "best", "diverged"]]
    setting, outcome = attempt(seconds=3.0, lr=0.1)
    assert table("title", setting, 0.1, outcome).renderables
