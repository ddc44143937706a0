"""A grid of options in a TOML file."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.errors import UsageError
from hpcasync.launch import grid


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return path


def test_every_combination_is_a_point(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        'job = "job.py"\nwords = ["--epochs", "5"]\n'
        '[options]\nstrategy = ["sync", "eager bound=8"]\nlr = [0.1, 1e-3]\n',
    )
    first = ["job.py", "--epochs", "5", "--strategy"]
    assert grid.points(path) == [
        [*first, "sync", "--lr", "0.1"],
        [*first, "sync", "--lr", "0.001"],
        [*first, "eager", "bound=8", "--lr", "0.1"],
        [*first, "eager", "bound=8", "--lr", "0.001"],
    ]


def test_without_options_there_is_one_point(tmp_path: Path) -> None:
    assert grid.points(written(tmp_path, 'job = "job.py"')) == [["job.py"]]


def test_the_grid_in_slurm_has_the_points_that_sweep_sbatch_asks_for() -> None:
    slurm = Path(__file__).parents[1] / "slurm"
    assert f"#SBATCH --array=0-{len(grid.points(slurm / 'grid.toml')) - 1}%" in (slurm / "sweep.sbatch").read_text()


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\0\r"), min_size=1), min_size=1))
def test_a_quoted_word_stays_one_word(words: list[str]) -> None:
    assert grid._option(Path("grid.toml"), "strategy", shlex.join(words)) == ["--strategy", *words]


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, 'job = "job.py"\n[options]\ndata = ["\'a b\'", "c"]\n')
    grid.main([str(path)])
    assert capsys.readouterr().out == "job.py --data 'a b'\njob.py --data c\n"
    grid.main([str(path), "0"])
    assert capsys.readouterr().out == "job.py\n--data\na b\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("job = ", "Invalid value"),
        ('jobs = "job.py"', "unknown key 'jobs'; the keys are job, words, options"),
        ("", "job = None: it must be the path of a job file"),
        ('job = "job"', "job = 'job': it must be the path of a job file"),
        ('job = "job.py"\nwords = "--lr 1"', "words = '--lr 1': it must be a list of words"),
        ('job = "job.py"\n[options]\nlr = 0.1', "every option needs a list of values"),
        ('job = "job.py"\n[options]\nlr = []', "every option needs a list of values"),
        ('job = "job.py"\n[options]\nlr = [[1]]', r"lr = \[1\]: it must be a text or a number"),
        ('job = "job.py"\n[options]\nresume = [true]', "resume = True: it must be a text or a number"),
        ('job = "job.py"\nwords = ["a\\nb"]', "a word must be on one line"),
        ('job = "job.py"\n[options]\nlr = ["\'"]', 'lr = "\'": No closing quotation'),
    ],
)
def test_mistakes(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        grid.points(written(tmp_path, text))


@pytest.mark.parametrize("point", ["1", "-1", "x", "²"])
def test_there_is_no_such_point(tmp_path: Path, point: str) -> None:
    with pytest.raises(UsageError, match=f"has no point {point}: they are 0-0"):
        grid.main([str(written(tmp_path, 'job = "job.py"')), point])


def test_a_missing_file_and_a_wrong_use() -> None:
    with pytest.raises(UsageError, match="No such file"):
        grid.points(Path("/no/grid.toml"))
    with pytest.raises(UsageError, match="usage: python -m"):
        grid.main([])
