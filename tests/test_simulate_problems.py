"""The problems that hpcasync simulate solves, and the files of numbers that they can be made of."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync import cli
from hpcasync.errors import UsageError
from hpcasync.simulate.csv_file import read_csv
from hpcasync.simulate.problems import Heterogeneous, Regression, Tridiagonal, logistic, regression

# Problems


@pytest.mark.parametrize(
    "problem",
    [Tridiagonal(), Heterogeneous(3), logistic(0), regression(np.random.default_rng(0).normal(size=(40, 4)), 0)],
    ids=lambda problem: type(problem).__name__,
)
def test_gradients_values_smoothness_and_optimum_fit_together(problem):
    rng = np.random.default_rng(1)
    x, direction = rng.normal(size=len(problem.start)), rng.normal(size=len(problem.start))
    ranks = 3 if isinstance(problem, Heterogeneous) else 1

    def gradient(x):
        return sum(problem.gradient(x, rank, rng) for rank in range(ranks)) / ranks

    step = 1e-6
    slope = (problem.value(x + step * direction) - problem.value(x - step * direction)) / (2 * step)
    assert gradient(x) @ direction == pytest.approx(slope, rel=1e-5)
    turned = np.linalg.norm(gradient(x + direction) - gradient(x))
    assert turned <= problem.smoothness * np.linalg.norm(direction) * (1 + 1e-9)
    for _ in range(20_000):
        x = x - gradient(x) / problem.smoothness
    assert problem.value(x) == pytest.approx(problem.optimum, abs=1e-9)
    assert problem.gap(problem.start) == 1


def test_the_tridiagonal_problem_is_that_of_the_papers():
    problem, d = Tridiagonal(), 50
    matrix = (2 * np.eye(d) - np.eye(d, k=1) - np.eye(d, k=-1)) / 4
    b = np.zeros(d)
    b[0] = -1 / 4
    x = np.random.default_rng(0).normal(size=d)
    assert problem.value(x) == pytest.approx(x @ matrix @ x / 2 - b @ x)
    assert problem.gradient(x, 0, np.random.default_rng(0)) == pytest.approx(matrix @ x - b)
    assert problem.smoothness == pytest.approx(np.linalg.eigvalsh(matrix)[-1])
    assert problem.optimum == pytest.approx(-b @ np.linalg.solve(matrix, b) / 2)
    assert problem.start.tolist() == [math.sqrt(d), *[0.0] * (d - 1)]


@pytest.mark.parametrize(
    "problem", [Tridiagonal(noise=0.3), Heterogeneous(1, noise=0.3), logistic(8)], ids=lambda p: type(p).__name__
)
def test_noise_has_mean_zero(problem):
    x, rng = problem.start + 0.1, np.random.default_rng(0)
    exact = logistic(0).gradient(x, 0, rng) if isinstance(problem, Regression) else None
    if exact is None:
        problem.noise, noise = 0.0, problem.noise
        exact, problem.noise = problem.gradient(x, 0, rng), noise
    draws = np.stack([problem.gradient(x, 0, rng) for _ in range(4000)])
    assert np.abs(draws.mean(axis=0) - exact).max() < 0.03
    assert draws.std(axis=0).max() > 0.01


def test_two_targets_make_it_logistic():
    table = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 5.0], [4.0, 5.0]])
    problem = regression(table, 0)
    assert problem.value(problem.start) == pytest.approx(math.log(2))
    table[3, 1] = 7.0
    assert regression(table, 0).value(problem.start) == pytest.approx(0.5)


# Files


@given(st.lists(st.lists(st.floats(-1e9, 1e9), min_size=3, max_size=3), min_size=2, max_size=6))
def test_numbers_come_back_from_a_file(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    path.write_text("a,b,c\n" + "".join(",".join(map(repr, line)) + "\n" for line in lines))
    assert read_csv(path).tolist() == lines


@given(st.binary(max_size=60))
def test_any_bytes_are_numbers_or_a_mistake(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    path.write_bytes(content)
    try:
        assert np.isfinite(read_csv(path)).all()
    except UsageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "0 lines of numbers; at least 2"),
        ("1,2\n", "1 lines of numbers"),
        ("1\n2\n", "1 column; at least 2"),
        ("1,2\n3\n", "line 2: 1 columns where the first line has 2"),
        ("a,b\n1,2\n3,x\n", "line 3: 'x' is not a finite number"),
        ("1,2\n3,inf\n", "line 2: 'inf' is not a finite number"),
        ("1,2\n\n3,\n", "line 3: '' is not a finite number"),
        ("1,5\n2,5\n", "the last column is 5 in every line"),
        ('1,"2\n3,4\n', "not comma-separated text"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path, capsys, monkeypatch, content, message):
    path = tmp_path / "table.csv"
    path.write_text(content)
    words = f"simulate --problem csv --data {path} --lr 1 --seconds 1"
    monkeypatch.setattr("sys.argv", ["hpcasync", *words.split()])
    with pytest.raises(SystemExit) as end:
        cli.main()
    told = capsys.readouterr().err
    assert end.value.code == 2
    assert told.startswith(f"hpcasync: error: --data {path}: ")
    assert message in told
    assert told.count("\n") == 1
