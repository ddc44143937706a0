"""hpcasync simulate --from: what a measured run says about other runs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from hpcasync.errors import UsageError
from hpcasync.simulate import measured as measuring
from hpcasync.simulate.measured import MeasuredSteps, read_measured
from tests.simulate_trials import run


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
    told = capsys.readouterr().out
    assert "measured with 3 ranks" in told
    assert "left out" not in told


def test_what_is_given_goes_before_what_was_measured(tmp_path, capsys):
    write_run(tmp_path / "run", [[1.0] * 10, [2.0] * 10])
    found = run(f"--from {tmp_path / 'run'} --ranks 4 --strategy sync --alpha 0 --beta 0 --seconds 50", tmp_path)
    assert found["updates"]["value"] == 25
    assert (
        "A step takes what it did with downpour: what sync's exchange costs its rank is left out"
        in capsys.readouterr().out
    )
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
