"""hpcasync compare: what it measures, shows and leaves behind, on a small problem."""

from __future__ import annotations

import dataclasses
import json
import re
from xml.etree import ElementTree

import pytest

from hpcasync.arguments import parse
from hpcasync.errors import UsageError
from hpcasync.simulate import cases, compare
from hpcasync.simulate.cases import CASES, OPTIONS, Case
from hpcasync.simulate.family_table import METRIC, markdown, told
from hpcasync.simulate.main import Options as SimulateOptions
from hpcasync.simulate.problems import Tridiagonal
from hpcasync.strategies import STRATEGIES, parse_strategy


@pytest.fixture
def small(monkeypatch):
    """Three quick cases: equal ranks, a slow one, and a step size too small to be found in the time that there is."""
    quick = tuple(Case(case.name, case.told, lambda ranks: Tridiagonal(4), case.law) for case in CASES[:2])
    hopeless = Case("hopeless", "", lambda ranks: Tridiagonal(50), CASES[0].law, seconds=2.0)
    monkeypatch.setattr(compare, "CASES", (*quick, hopeless))
    monkeypatch.setattr(cases, "UNTIL", 1e-3)


def test_a_slow_rank_costs_sync_its_factor_and_hogwild_little(small, tmp_path, capsys):
    assert (
        compare.compare(["--output", str(tmp_path), "--only", "sync", "hogwild", "--ranks", "3", "--seeds", "2"]) == 0
    )
    rows = json.loads((tmp_path / "simulated.json").read_text())
    times = {(row["subject"], row["case"]): row for row in rows if row["metric"] == "seconds_to_tolerance"}
    equal, slow = (times["sync", case]["value"] for case in ("no straggler", "one slow rank"))
    assert slow == pytest.approx(10 * equal)
    assert len(times["sync", "no straggler"]["runs"]) == 2
    assert times["hogwild", "one slow rank"]["value"] < slow / 3
    assert times["sync", "hopeless"]["value"] is None
    assert "not reached within 2.00 s" in times["sync", "hopeless"]["error"]
    rates = [row for row in rows if row["metric"] == "learning_rate_times_smoothness"]
    assert len(rates) == 6
    assert all(0 < row["value"] < 4 for row in rates)
    told = (tmp_path / "simulated.md").read_text()
    assert re.search(r"^\| allreduce \| `sync` \| [*\d. ()]+ \| [*\d. ()]+ \| never \|$", told, re.MULTILINE)
    assert told.count("**") == 4  # the best of each of two columns
    plot = (tmp_path / "simulated.svg").read_text()
    assert ElementTree.fromstring(plot).tag.endswith("svg")
    assert all(word in plot for word in ("sync", "hogwild", "no straggler", "shared memory"))
    assert "one slow rank" in capsys.readouterr().out


def cell(*seeds):
    """What the table says of a case that took its seeds so long; a word is why one missed the tolerance."""
    samples = [
        compare.Sample("c", "sync", METRIC, "s", seed, *((None, value) if isinstance(value, str) else (value,)))
        for seed, value in enumerate(seeds)
    ]
    return compare.make_rows("compare", samples, {})[0]


def test_what_a_cell_says():
    assert told(None) == "–"
    assert told(cell("diverged after 1 s")) == "diverged"
    assert told(cell("not reached")) == "never"
    assert told(cell(2.0)) == "2.00 (1.0)"
    assert told(cell(2.0, 4.0, 3.0)) == "3.00 (2.0)"
    assert told(cell(2.0, 4.2, 3.0)) == "3.00 (2.1!)"
    assert told(cell(2.0, 1.0, "not reached")) == "~1.50"


def test_the_best_of_a_column_is_one_that_every_seed_reached():
    doubtful = dataclasses.replace(cell(1.0, "not reached"), subject="hogwild")
    text = markdown([doubtful, cell(2.0, 3.0)])
    assert "| ~1.00 |" in text
    assert "| **2.50 (1.5)** |" in text


def test_the_cases_are_what_simulate_takes():
    for case in CASES:
        options = parse(SimulateOptions, case.told.split(), prog="hpcasync simulate")
        options.resolve()
        setting, mine = options.setting(None), case.setting("sync", 4)
        assert (setting.law, setting.alpha, setting.beta) == (mine.law, mine.alpha, mine.beta)
        assert setting.problem.gap(mine.problem.start + 1) == mine.problem.gap(mine.problem.start + 1)
    for name, options in OPTIONS.items():
        parse_strategy([name, *options.split()])
    assert OPTIONS.keys() <= STRATEGIES.keys()


def test_strategies_with_two_levels_run_on_two_nodes():
    assert {name: CASES[0].setting(name, 5).ranks_per_node for name in ("sync", "hogwild_nodes", "halos")} == {
        "sync": None,
        "hogwild_nodes": 3,
        "halos": 3,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--ranks 0", "--ranks 0: it must be 1 or more"),
        ("--seeds 0", "--seeds 0: it must be 1 or more"),
        ("--only magic", "unknown strategy 'magic'"),
        ("--output nowhere", "--output nowhere is not a folder; make it first"),
        ("--rank 3", "unknown option --rank"),
    ],
)
def test_mistakes(words, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        compare.compare(words.split())


def test_an_interrupt_keeps_what_was_measured(small, monkeypatch, tmp_path, capsys):
    measure = compare.measure

    def interrupted(case, words, options):
        if words == "hogwild":
            raise KeyboardInterrupt
        return measure(case, words, options)

    monkeypatch.setattr(compare, "measure", interrupted)
    assert compare.compare(["--output", str(tmp_path), "--only", "sync", "hogwild", "--seeds", "1"]) == 130
    assert {row["subject"] for row in json.loads((tmp_path / "simulated.json").read_text())} == {"sync"}
    monkeypatch.setattr(compare, "CASES", ())
    assert compare.compare([]) == 0
    told = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1].split()[0] for line in told[-len(STRATEGIES) :]] == list(STRATEGIES)
