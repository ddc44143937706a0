"""What a sweep searches: combinations, draws, and files and commands that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.errors import UsageError
from hpcasync.sweep import main as sweep_main
from hpcasync.sweep.space import words
from tests.sweep_trials import JOB, space


def test_every_combination_once(tmp_path: Path) -> None:
    found = space(
        tmp_path,
        """
        [search]
        lr = [0.1, 1]
        compress = [false, "int8"]
        [strategy.sync]
        [strategy.stale]
        bound = [1, 2]
        """,
    ).combinations()
    assert len(found) == 2 * 2 * (1 + 2)
    told = [" ".join(words(parameters)) for parameters in found]
    assert len(set(told)) == len(told)
    assert told[0] == "--lr=0.1 --strategy sync"
    assert "--lr=1 --compress=int8 --strategy stale bound=2" in told


@given(st.data())
def test_a_draw_lies_within_its_space(data: st.DataObject) -> None:
    drawn = {
        "lr": data.draw(st.floats(1e-3, 1.0)),
        "batch_size": data.draw(st.integers(1, 64)),
        "strategy": "downpour",
        "downpour.pull": data.draw(st.sampled_from([1, 2])),
        "trace": data.draw(st.booleans()),
    }
    told = words(drawn)
    assert told[0] == f"--lr={drawn['lr']}"
    assert f"--batch-size={drawn['batch_size']}" in told
    assert told[told.index("--strategy") + 1 :][:2] == ["downpour", f"pull={drawn['downpour.pull']}"]
    assert ("--trace" in told) == drawn["trace"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "nothing is searched"),
        ("x = 1", "unknown entry 'x'; the known ones are trials, seed"),
        ("[search", "not TOML"),
        ("search = 1", "search = 1: it must be a table"),
        ("trials = 0\n[search]\nlr = [1]", "trials = 0: it must be a whole number, 1 or more"),
        ("seed = 1.5\n[search]\nlr = [1]", "seed = 1.5: it must be a whole number, 0 or more"),
        ("[search]\nlr = 0.1", "lr = 0.1: it must be a list of values, or a range"),
        ("[search]\nlr = []", "lr = []"),
        ("[search]\nlr = [[1]]", "lr: [1] is no text, number, true or false"),
        ("[search]\nlr = [nan]", "lr: nan"),
        ('[search]\ndata = ["a\\nb"]', "holds a character that no option has"),
        ("[search]\nlr = [1, 1.0]", "lr: a value is in its list twice"),
        ("[search]\nlr = { low = 1, high = 2 }", "lr is a range, which has no end of combinations"),
        ("trials = 2\n[search]\nlr = { low = 1 }", "lr: low or high is missing"),
        ("trials = 2\n[search]\nlr = { low = 1, high = 2, by = 1 }", "lr: unknown entry 'by'"),
        ("trials = 2\n[search]\nlr = { low = 2, high = 2 }", "lr: low = 2 must be below high = 2"),
        ("trials = 2\n[search]\nlr = { low = 0, high = 2, log = true }", "needs a low above 0, and no step"),
        ("trials = 2\n[search]\nlr = { low = 1, high = 2, log = 1 }", "log = 1: it must be true or false"),
        ('trials = 2\n[search]\nlr = { low = "a", high = 2 }', "lr: low = 'a': it must be a number"),
        ("trials = 2\n[search]\nlr = { low = 1, high = 2, step = 0 }", "lr: step = 0 must be above 0"),
        ("trials = 2\n[search]\nlr = { low = 1, high = 2, sync = -1 }", "lr: sync = -1: it must be above 0"),
        ('[search]\nname = ["a", "b"]', "name cannot be searched"),
        ('[search]\nstrategy = ["sync"]', "strategy cannot be searched: give [strategy.NAME] tables"),
        ('[search]\n"a b" = [1]', "'a b' is not the name of an option"),
        ("strategy = 1", "strategy = 1: it must be a table, [strategy.NAME]"),
        ("[strategy.sync]", "nothing is searched"),
        ("[strategy.nope]\n[strategy.sync]", "unknown strategy 'nope'"),
        ("[strategy]\nsync = 1", "strategy.sync = 1: it must be a table"),
        ("[strategy.stale]\nfrob = [1]", "strategy stale has no option 'frob'"),
        ('[strategy.stale]\nbound = ["a"]', "bound=a is not an integer"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_on_one_line(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as told:
        space(tmp_path, text)
    assert str(told.value).startswith(f"{tmp_path}/sweep.toml: ")
    assert complaint in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["grid.toml"], "no job file"),
        (["grid.toml", "missing.py"], "missing.py: there is no such job file"),
        (["missing.toml", JOB], "missing.toml: it cannot be read (No such file"),
        ([JOB], "no file of what is searched"),
        (["-n", "0", "grid.toml", JOB], "-n 0: it must be 1 or more"),
        (["--name", "a/b", "grid.toml", JOB], "--name a/b: it must be a folder's name"),
        (["--frobnicate", "grid.toml", JOB], "unknown option --frobnicate; the known options are -n --launcher"),
        (["grid.toml", JOB, "--results", "out"], "--results: the sweep names its runs; give --results before the file"),
        (["grid.toml", JOB, "--resume"], "--resume: the sweep names its runs"),
        (["grid.toml", JOB, "--lr=3"], "--lr is searched"),
    ],
)
def test_a_mistake_is_told_and_nothing_begins(
    command: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grid.toml").write_text("[search]\nlr = [1, 2]")
    with pytest.raises(UsageError) as told:
        sweep_main.main(command)
    assert complaint in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.toml"]


def test_without_optuna_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grid.toml").write_text("[search]\nlr = [1, 2]")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs Optuna: pip install optuna"):
        sweep_main.main(["grid.toml", JOB])
