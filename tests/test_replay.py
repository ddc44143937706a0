"""A run made with --trace, and hpcasync replay: the same again, every time, or one line about why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcasync.errors import UsageError
from hpcasync.report.read import read_run
from hpcasync.run import main
from hpcasync.run.trace import read_traces
from hpcasync.simulate.replay import compare, replay
from tests import tiny_job
from tests.test_run import launch, outcome, values
from tests.test_run import simulate as run_simulated

STEPS = 6


@pytest.fixture
def traced(tmp_path: Path) -> Path:
    """A traced run of the tiny job on three simulated ranks of unequal speed."""
    words = "--ranks 3 --strategy downpour --jitter exponential --slow 1:2 --trace --batch-size 4 --steps"
    code, folder = run_simulated(tmp_path, *words.split(), str(STEPS))
    assert code == 0
    return folder


def replayed(folder: Path, name: str) -> Path:
    """What ``--replay`` makes of a traced run of the tiny job, in this process; under a name of its own."""
    with pytest.raises(SystemExit) as end:
        main(tiny_job.train, tiny_job.Tiny, ["--batch-size", "4", "--strategy", "downpour", "--replay", str(folder)])
    assert end.value.code == 0
    (made,) = [path for path in (folder / "replays").iterdir() if not path.name.startswith("replay-")]
    return made.rename(made.with_name(f"replay-{name}"))


def table(folder: Path) -> np.ndarray[Any, Any]:
    run = read_run(folder)
    return np.stack([run.column(name) for name in ("seconds", "loss", "staleness", "samples", "waited")])


def test_a_trace_tells_every_contribution(traced: Path) -> None:
    run, traces = read_run(traced), read_traces(traced)
    assert [len(trace) for trace in traces] == [STEPS] * 3
    for rank, trace in enumerate(traces):
        assert [(c.rank, c.clock, c.span, c.samples) for c in trace] == [
            (rank, step, (0, 4), 4) for step in range(1, STEPS + 1)
        ]
        assert [c.staleness for c in trace] == run.ranks[rank].columns["staleness"].tolist()
        assert [c.seconds for c in trace] == pytest.approx(run.ranks[rank].columns["seconds"])  # messages cost nothing


def test_a_simulated_run_is_replayed_exactly(traced: Path) -> None:
    once, again = (table(replayed(traced, name)) for name in ("1", "2"))
    assert (once == again).all()
    assert once[1:4] == pytest.approx(table(traced)[1:4], rel=1e-6)
    assert once[0] == pytest.approx(table(traced)[0])


def test_a_run_without_trace_has_none(tmp_path: Path) -> None:
    _, folder = run_simulated(tmp_path, "--ranks", "2", "--steps", "2")
    assert not list(folder.glob("trace*"))
    with pytest.raises(UsageError, match="holds no trace: run the job with --trace to have one"):
        replay([str(folder)])


@pytest.mark.timeout(180)
def test_a_real_run_is_replayed_the_same_way_every_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--steps", "12", "--strategy", "downpour", "--slow", "1:2", "--step-seconds", "0.004", "--trace"]
    assert outcome(launch(tmp_path, 2, *words)) == (0, "")
    folder = tmp_path / "run"
    tables = []
    for _ in range(2):
        assert replay([str(folder)]) == 0
        told = capfd.readouterr().out
        tables.append(table(Path(told.rpartition("replay: ")[2].strip())))
        assert "24" in told.partition("steps")[2].partition("\n")[0]
    assert (tables[0] == tables[1]).all()
    assert len(list((folder / "replays").iterdir())) == 2
    handed_in = [contribution.seconds for trace in read_traces(folder) for contribution in trace]
    assert tables[0][0] == pytest.approx(handed_in, abs=1e-6)  # each rank hands in when it did
    assert values(folder)["steps"] == 24


def change(folder: Path, **entries: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"failures": [{"rank": 1}]}, "the run lost a rank"),
        ({"attempts": [{"step": 0}, {"step": 3}]}, "the run was made in 2 attempts; only one attempt can be replayed"),
        ({"argv": []}, "its run.json does not say how the job was called"),
        ({"argv": "job.py"}, "its run.json does not say how the job was called"),
        ({"argv": ["nowhere/job.py"]}, "nowhere/job.py: the job is not there; replay from the folder in which"),
        ({"world": {"size": 4}}, "traces of 3 ranks where there were 4"),
    ],
)
def test_what_cannot_be_replayed_is_told_in_one_line(traced: Path, entries: dict[str, Any], message: str) -> None:
    change(traced, **entries)
    with pytest.raises(UsageError) as error:
        replay([str(traced)])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (traced / "replays").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace('"clock": 2', '"clock": 3'),
        lambda line: line.replace('"rank": 1', '"rank": 0'),
        lambda line: line.replace('"seconds": ', '"seconds": -'),
        lambda line: line.replace("[0, 4]", "4"),
        lambda line: line.replace('"samples"', '"sample"'),
        lambda line: line[:20],
    ],
)
def test_a_damaged_trace_is_named(traced: Path, damage: Any) -> None:
    path = traced / "trace.rank1.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    damaged = damage(lines[1].rstrip("\n"))
    assert damaged != lines[1].rstrip("\n")
    path.write_text("".join([lines[0], damaged + "\n", *lines[2:]]))
    with pytest.raises(UsageError, match=r"trace\.rank1\.jsonl, line 2: not step 2 of rank 1"):
        read_traces(traced)


def test_a_torn_last_line_and_a_missing_file(traced: Path) -> None:
    path = traced / "trace.rank2.jsonl"
    path.write_text(path.read_text() + '{"rank": 2, "clo')
    assert len(read_traces(traced)[2]) == STEPS
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(UsageError, match="cannot be read"):
        read_traces(traced)
    (traced / "trace.rank1.jsonl").unlink()
    with pytest.raises(UsageError, match=r"trace\.rank1\.jsonl: it cannot be read"):
        read_traces(traced)


def test_the_comparison_counts_what_came_out_otherwise(traced: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(traced, other)
    path = other / "metrics.rank0.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    first = next(line for line in lines if "loss" in line)
    first |= {"staleness": first["staleness"] + 1, "loss": first["loss"] + 0.5}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cells = [list(column.cells) for column in compare(read_run(traced), read_run(other)).columns]
    told = dict(zip(*cells, strict=True))
    assert told["steps"] == f"{3 * STEPS}"
    assert told["with the recorded staleness"] == f"{round(100 * (1 - 1 / (3 * STEPS)))} %"
    assert told["loss of a step, difference"] == "0 in the median, 0.5 at most"
