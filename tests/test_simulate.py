"""hpcasync simulate: closed forms for time and rates, the step-size search, problems, files, mistakes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcasync import cli
from hpcasync.errors import UsageError
from hpcasync.laws import parse_law
from hpcasync.simulate import measured as measuring
from hpcasync.simulate.csv_file import read_csv
from hpcasync.simulate.learning_rate import best_rate, grid
from hpcasync.simulate.main import main
from hpcasync.simulate.measured import MeasuredSteps, read_measured
from hpcasync.simulate.problems import Heterogeneous, Problem, Regression, Tridiagonal, logistic, regression
from hpcasync.simulate.result import grid_table, rows, table
from hpcasync.simulate.trial import Outcome, Setting, Trial
from hpcasync.strategies import parse_strategy


def attempt(
    words="sync", ranks=4, compute="constant", lr=0.5, until=None, seconds=1e4, problem=None, **more
) -> tuple[Setting, Outcome]:
    law, choice = parse_law(compute), parse_strategy(words.split())
    setting = Setting(problem or Tridiagonal(), ranks, law, choice, until, seconds, **more)
    return setting, Trial(setting, lr, lambda *_: None).run()


def run(words, tmp_path):
    """The rows that the command line leaves, by metric."""
    file = tmp_path / "rows.json"
    assert main([*words.split(), "--json", str(file)]) == 0
    return {row["metric"]: row for row in json.loads(file.read_text())}


class Parabola(Problem):
    """f(x) = curvature x²/2 from x0 = 1: gradient descent gets there in one step of 1/curvature."""

    def __init__(self, curvature: float) -> None:
        self.smoothness, self.start, self.optimum = curvature, np.ones(1), 0.0

    def value(self, x):
        return float(self.smoothness * x[0] ** 2 / 2)

    def gradient(self, x, rank, rng):
        return self.smoothness * x


# Time and rates


@pytest.mark.parametrize(
    ("compute", "slowest"), [("constant:0.5", 0.5), ("sqrt", math.sqrt(5)), ("slow:2:7", 7.0)], ids=str
)
def test_synchronous_time_is_steps_times_the_slowest(compute, slowest):
    lr, curvature, until = 0.25, 2.0, 1e-3
    steps = math.ceil(math.log(until) / (2 * math.log(1 - lr * curvature)))
    _, outcome = attempt(ranks=5, compute=compute, lr=lr, until=until, problem=Parabola(curvature))
    assert outcome.seconds_to_tolerance == pytest.approx(steps * slowest)
    assert outcome.updates == steps
    assert outcome.gap == pytest.approx((1 - lr * curvature) ** (2 * steps))


@pytest.mark.parametrize("words", ["hogwild", "downpour"])
def test_asynchronous_updates_per_second_are_the_sum_of_speeds(words):
    seconds = 60.0
    _, outcome = attempt(words, ranks=9, compute="sqrt", lr=0.01, seconds=seconds)
    assert outcome.updates == outcome.steps == sum(math.floor(seconds / math.sqrt(i) + 1e-9) for i in range(1, 10))
    assert outcome.seconds == seconds
    assert outcome.waited == 0


def test_waiting_is_what_the_slowest_makes_the_others_lose():
    _, outcome = attempt(ranks=3, compute="slow:1:4", seconds=40.0, lr=0.1)
    assert outcome.waited == pytest.approx(2 / 3 * 30.0)


def test_a_message_costs_alpha_and_beta():
    length = 50
    seconds = 1 + 2 * 0.25 + 2 * 0.01 * 8 * (length + 1) * 3 / 4  # ceil(log2 4) = 2
    _, outcome = attempt(ranks=4, lr=0.1, seconds=100.0, alpha=0.25, beta=0.01)
    assert outcome.updates == math.floor(100 / seconds)


def test_staleness_of_equal_ranks_is_their_number_less_one():
    _, outcome = attempt("hogwild", ranks=6, compute="exponential", lr=0.01, seconds=400.0)
    mean = sum(value * times for value, times in outcome.staleness.items()) / outcome.staleness.total()
    assert outcome.staleness.total() == outcome.updates
    assert mean == pytest.approx(5.0, abs=0.2)


def test_a_seed_gives_one_outcome():
    def outcome(seed):
        return attempt("hogwild", compute="exponential", lr=0.1, until=0.05, seed=seed, problem=Tridiagonal(noise=0.01))

    assert outcome(1)[1] == outcome(1)[1] != outcome(2)[1]


def test_divergence_ends_a_trial():
    setting, outcome = attempt(lr=8.0, until=0.1)
    assert outcome.diverged
    assert outcome.seconds < 100
    row = rows("case", "sync", setting, 8.0, outcome)[0]
    assert (row.metric, row.value) == ("seconds_to_tolerance", None)
    assert "diverged after" in (row.error or "")


# The step size


@pytest.mark.parametrize("curvature", [1.0, 4.0, 2.0**-7, 2.0**1.5])
def test_the_best_step_size_of_a_parabola_is_one_over_its_curvature(curvature):
    def attempt_lr(lr, seconds):
        return attempt(ranks=2, lr=lr, until=1e-9, seconds=seconds, problem=Parabola(curvature))[1]

    best, tried = best_rate(attempt_lr, curvature, 1e4)
    assert best == pytest.approx(1 / curvature)
    assert tried[best].seconds_to_tolerance == 1.0
    assert list(tried) == sorted(tried)


def test_the_search_finds_what_trying_everything_finds():
    def attempt_lr(lr, seconds):
        return attempt("hogwild", ranks=3, compute="exponential", lr=lr, until=0.01, seconds=seconds)[1]

    best, tried = best_rate(attempt_lr, 1.0, 500.0)
    times = {grid(k): attempt_lr(grid(k), 500.0).seconds_to_tolerance or math.inf for k in range(-12, 5)}
    assert tried[best].seconds_to_tolerance == min(times.values()) == times[best]


def test_the_search_goes_up_when_the_largest_is_the_best():
    best, _ = best_rate(lambda lr, _: Outcome(seconds_to_tolerance=abs(lr - 64) + 1), 1.0, 1e4)
    assert best == pytest.approx(64)


def test_where_nothing_is_good_enough_the_nearest_is_best():
    best, tried = best_rate(lambda lr, _: Outcome(gap=max(lr, 0.01 / lr)), 1.0, 1e4)
    assert best == pytest.approx(2**-3.5)  # of the grid, nearest to 0.1
    assert tried[best].seconds_to_tolerance is None


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


# The command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--ranks 0", "--ranks 0: it must be 1 or more"),
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


# From a measured run


def write_run(folder, step_seconds, waited=0.0, **more):
    """A run's folder as far as it is read; ``step_seconds[r]`` are rank r's steps, each after ``waited`` of waiting."""
    folder.mkdir()
    ranks, samples = len(step_seconds), 8
    for rank, seconds in enumerate(step_seconds):
        lines, now = [], 0.0
        for step, each in enumerate(seconds, start=1):
            now += each + waited
            lines.append(
                {"step": step, "seconds": now, "samples": samples * step, "waited": waited * step, "loss": 1.0}
            )
        (folder / f"metrics.rank{rank}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    wall = max(sum(seconds) + waited * len(seconds) for seconds in step_seconds)
    rate = samples * sum(map(len, step_seconds)) / wall
    document = {
        "schema": "hpcasync.run/1", "name": "measured", "status": "done", "job": "job", "failures": [],
        "strategy": {"name": "downpour", "options": {"push": 1, "pull": 2, "bound": "inf"}},
        "world": {"size": ranks}, "config": {"batch_size": samples},
        "network": {"alpha_seconds": 0.5, "beta_seconds_per_byte": 1e-3}, "parameter_bytes": 4000,
        "summary": {"samples_per_second": {"value": rate}, "seconds": {"value": wall}},
    } | more  # fmt: skip
    (folder / "run.json").write_text(json.dumps(document))
    (folder / "DONE").touch()
    return rate


def test_a_measured_run_is_predicted(tmp_path, capsys):
    rng = np.random.default_rng(0)
    steps = [rng.uniform(0.8, 1.2, 400) * factor for factor in (1, 1, 4)]
    rate = write_run(tmp_path / "run", steps, waited=0.1, network=None)
    found = run(f"--from {tmp_path / 'run'}", tmp_path)
    assert found["samples_per_second"]["subject"] == "downpour push=1 pull=2 bound=inf"
    # it waits no more: the 0.1 s of each step are gone
    assert found["samples_per_second"]["value"] == pytest.approx(8 * (1 + 1 + 1 / 4), rel=0.03)
    assert rate < 8 * (1 + 1 + 1 / 4)
    assert "measured with 3 ranks" in capsys.readouterr().out


def test_what_is_given_goes_before_what_was_measured(tmp_path):
    write_run(tmp_path / "run", [[1.0] * 10, [2.0] * 10])
    found = run(f"--from {tmp_path / 'run'} --ranks 4 --strategy sync --alpha 0 --beta 0 --seconds 50", tmp_path)
    assert found["updates"]["value"] == 25
    assert found["samples_per_second"]["value"] == pytest.approx(8 * 4 / 2)


def test_messages_weigh_what_they_weighed(tmp_path):
    write_run(tmp_path / "run", [[1.0] * 10, [1.0] * 10])
    found = run(f"--from {tmp_path / 'run'} --strategy sync --seconds 600", tmp_path)
    step = 1 + 0.5 + 2 * 1e-3 * 4000 * 51 / 50 / 2  # one more element carries the count
    assert found["updates"]["value"] == math.floor(600 / step)


def test_measured_steps_keep_what_ranks_share():
    law = MeasuredSteps([np.arange(1.0, 5.0), np.arange(10.0, 50.0, 10.0)], seed=0)
    rng = np.random.default_rng(0)
    first, second, third, fourth = ([law.draw(rng, rank, step) for step in range(40)] for rank in range(4))
    assert [10 * x for x in first] == second
    assert [10 * x for x in third] == fourth
    assert first != third
    assert set(first) == {1.0, 2.0, 3.0, 4.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "running"}, "the run is running; one that is done is needed"),
        ({"failures": [{"rank": 1}]}, "the run lost a rank"),
        ({"world": {"size": 3}}, "metrics of 2 ranks where there were 3"),
        ({"summary": {}}, "its summary has no seconds"),
    ],
)
def test_a_run_that_cannot_be_used(tmp_path, change, message):
    write_run(tmp_path / "run", [[1.0] * 3, [1.0] * 3], **change)
    if change.get("status"):
        (tmp_path / "run" / "DONE").unlink()
    with pytest.raises(UsageError, match=message):
        read_measured(tmp_path / "run")


def test_a_rank_without_steps_cannot_be_used(tmp_path):
    write_run(tmp_path / "run", [[1.0] * 3, [1.0]])
    with pytest.raises(UsageError, match="rank 1 has made fewer than 2 steps"):
        read_measured(tmp_path / "run")
    assert measuring._LEAST_STEPS == 2


# Size


@pytest.mark.timeout(300)
@pytest.mark.parametrize("words", ["sync", "hogwild", "downpour"])
def test_a_thousand_ranks(words):
    _, outcome = attempt(words, ranks=1000, compute="sqrt", lr=1e-4, seconds=3.0)
    expected = sum(math.floor(3 / math.sqrt(i)) for i in range(1, 1001)) if words != "sync" else 0
    assert outcome.steps == expected
    assert torch.get_num_threads() == 1
