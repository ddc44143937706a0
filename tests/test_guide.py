"""hpcasync strategies: the table, one strategy in full, the guide; and the README says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpcasync import cli, guide
from hpcasync.errors import UsageError
from hpcasync.strategies import FAMILIES, STRATEGIES, parse_strategy

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.parametrize("width", [80, 150])
def test_all_strategies_with_their_options_and_papers_fit_the_width(width, capsys, monkeypatch):
    """A table where there is room for one, and paragraphs where there is not, as through a pipe."""
    monkeypatch.setenv("COLUMNS", str(width))
    assert guide.strategies([]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= width
    for name in STRATEGIES:
        assert re.search(rf"^ *{name}( |$)", told, re.MULTILINE)
    assert "push=1 pull=1 bound=inf" in told
    assert "arXiv 1604.00981" in told
    for family in FAMILIES:
        assert family.name in told
    for advice in guide.ADVICE:
        assert advice.disease in told
    assert "an n-th makes as long a step: hogwild" in told


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_in_full_has_its_equation_options_and_papers(name):
    text, entry = guide.in_full(name), STRATEGIES[name]
    assert text.startswith(f"{name}: {entry.summary}")
    assert re.search(r"^ {4}.*(<-|=)", text, re.MULTILINE)
    for option, default in entry.hyperparameters().items():
        assert f"{option}={default}" in text
    assert guide.papers(entry) in text


def test_a_policy_is_explained_where_it_makes_the_algorithm():
    assert "x <- x - gamma g if delay < threshold" in guide.in_full("ringmaster")
    assert "--compress: fp16, bf16, int8, sign, topk, powersgd" in guide.in_full("sync")


def test_a_strategy_in_full_says_how_large_a_step_it_takes():
    assert "step size: an n-th of that of sync, for n ranks" in guide.in_full("hogwild")
    assert "step size: that of sync" in guide.in_full("eager")


def test_the_readme_has_the_same_guide_and_the_same_papers():
    assert guide.markdown() in README, "README.md: put hpcasync.guide.markdown() into the guide's section"
    assert guide.STEP_SIZES in README, "README.md: put hpcasync.guide.STEP_SIZES into the section on step sizes"
    for name, entry in STRATEGIES.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` |"))
        for paper in entry.papers.split("; "):
            assert set(re.findall(r"[\w.]+", paper)) <= set(re.findall(r"[\w.]+", row)), f"{name}: {paper}"


def test_advice_names_what_there_is():
    diseases = [advice.disease for advice in guide.ADVICE]
    assert len(set(diseases)) == len(diseases) >= 5
    assert all(set(advice.take) <= STRATEGIES.keys() for advice in guide.ADVICE)


def test_an_unknown_strategy_is_told_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["hpcasync", "strategies", "magic"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    told = capsys.readouterr().err
    assert end.value.code == 2
    assert told.startswith("hpcasync: error: unknown strategy 'magic'; the known ones are sync, ")
    with pytest.raises(UsageError, match=r"unknown strategy 'egaer'; did you mean eager\?$"):
        guide.strategies(["egaer"])
    with pytest.raises(UsageError, match=r"strategy eager has no option 'bond'; did you mean bound\?$"):
        parse_strategy(["eager", "bond=8"])
    with pytest.raises(UsageError, match="unknown option --two"):
        guide.strategies(["sync", "--two"])


def test_several_are_shown_one_after_the_other(capsys):
    assert guide.strategies(["sync", "stale"]) == 0
    assert re.findall(r"^(\w+): ", capsys.readouterr().out, re.MULTILINE)[:1] == ["sync"]
