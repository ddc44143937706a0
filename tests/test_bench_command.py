"""hpcasync bench: what it launches, one line per mistake, launches that fail, and one that is real."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hpcasync
from hpcasync import cli
from hpcasync.bench import launches, main, survival
from hpcasync.bench.benches import BENCHES, PROGRESS, Overlap, Straggler, Survival, Wire
from hpcasync.bench.launches import Launch, LaunchError, argv, perform, reason
from hpcasync.bench.options import counts, names
from hpcasync.bench.rank import MEASURES
from hpcasync.launch import Launcher
from hpcasync.strategies import STRATEGIES

OPEN_MPI = Launcher(Path("/opt/bin/mpirun"), "Open MPI")


@pytest.mark.parametrize("kind", list(BENCHES.values()))
def test_what_a_bench_launches_can_be_written_down_and_is_known(kind: type[Any]) -> None:
    plan = kind(peers="" if kind in (Survival, Wire) else "horovod,ddp", quick=True).launches()
    assert len({(launch.case, launch.subject) for launch in plan}) == len(plan)
    for launch in plan:
        assert launch.measure in (*MEASURES, survival.MEASURE)
        assert json.loads(json.dumps(launch.options)) == launch.options
        words = argv(OPEN_MPI, launch, 0, Path("answer"))
        assert words[words.index("-n") + 1] == str(launch.ranks)
        if launch.peer:  # as their users start them
            assert words[words.index("--bind-to") + 1] == "none"


def test_defaults_name_only_strategies_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in BENCHES.values():
        assert {text.split()[0] for text in kind().chosen_strategies()} <= set(STRATEGIES)
        assert {text.split()[0] for text in kind.default_strategies} <= set(STRATEGIES)


def test_strategies_are_given_with_their_options() -> None:
    subjects = [x.subject for x in Straggler(strategies="downpour  pull=4; sync;", cases="sleep").launches()]
    assert subjects == ["none", "downpour pull=4", "sync"]


def test_overlap_takes_the_progress_thread_away_from_what_posts_collectives() -> None:
    launches = Overlap(strategies="stale bound=2; hogwild").launches()
    assert [(x.subject, x.environment) for x in launches] == [
        ("none", {}),
        ("stale bound=2", {}),
        ("hogwild", {}),
        ("stale bound=2, no progress thread", {PROGRESS: "none"}),
    ]
    # Importing it would initialize MPI here.
    assert f'OPTION = "{PROGRESS}"' in Path(hpcasync.__file__).with_name("mpi").joinpath("progress.py").read_text()


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hpcasync", "bench", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("fly", "unknown bench 'fly'; the benches are world, wire, overlap, straggler, scaling, survival"),
        ("straggler --ranks 1", "--ranks 1: this bench needs 2 or more"),
        ("straggler --ranks four", "--ranks four: it must be a whole number"),
        ("straggler --cases sleep,walk", "'walk' is unknown; known: sleep, cnn, jitter, compute"),
        ("straggler --cases sleep,sleep", "'sleep' is given twice"),
        ("straggler --peers bluefog", "--peers bluefog: 'bluefog' is unknown; known: horovod, ddp"),
        ("straggler --strategies swift", "unknown strategy 'swift'"),
        ("straggler --strategies sync;sync", "'sync' is given twice"),
        ("straggler --strategies downpour,pull=4", "unknown strategy"),
        ("overlap --repeats 0", "--repeats 0: it must be 1 or more"),
        ("overlap --ranks 0", "--ranks 0: this bench needs 1 or more"),
        ("scaling --ranks 1,,2", "--ranks 1,,2: '' is not a number of ranks"),
        ("scaling --ranks 2,2", "'2' is given twice"),
        ("scaling --step-seconds -1", "--step-seconds -1.0: it must be 0 or more"),
        ("scaling --step-seconds nan", "--step-seconds nan: it must be 0 or more"),
        ("world --ranks x", "--ranks x: 'x' is not a number of ranks"),
        ("survival --peers ddp", "--peers ddp: a death ends the runs of Horovod and DDP"),
        ("survival --cases drowned", "'drowned' is unknown; known: killed, undisturbed"),
        ("world --frobnicate", "unknown option --frobnicate; the known options are"),
        ("world --json nowhere/rows.json", "--json nowhere/rows.json: there is no folder nowhere"),
    ],
)
def test_a_mistake_is_told_on_one_line(
    words: str,
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *words.split(" ")) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("hpcasync: error: ")
    assert complaint in told.err
    assert told.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--help") == 0
    told = capsys.readouterr().out
    for name, kind in BENCHES.items():
        assert kind.example.startswith(f"hpcasync bench {name} ")
        assert kind.example in told
        assert call(monkeypatch, name, "--help") == 0
        assert kind.example in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_a_peer_that_is_missing_names_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "horovod", None)
    assert call(monkeypatch, "overlap", "--peers", "horovod", "--results", str(tmp_path)) == 2
    assert "make horovod" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("log", "code", "told"),
    [
        ("", None, "no result within 9 s"),
        ("Timeout (0:00:09)!\nThread 0x1 (most recent call first):\n", 1, "no result within 9 s"),
        ("noise\nhpcasync: rank 1: KeyError: 'x'\nTraceback\n", 1, "rank 1: KeyError: 'x'"),
        ("Traceback\nNameError: name 'x' is not defined\nnoise\n", 1, "NameError: name 'x' is not defined"),
        ("noise\n", 139, "ended with exit code 139"),
        ("", 0, "ended without a result"),
    ],
)
def test_why_a_launch_has_no_result(log: str, code: int | None, told: str) -> None:
    assert reason(log, code, 9) == told


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("import time; time.sleep(600)", "no result within"),
        ("import sys; print('hpcasync: rank 0: out of luck'); sys.exit(3)", "rank 0: out of luck"),
        ("pass", "ended without a result"),
    ],
)
def test_a_launch_that_fails_is_ended_and_told(
    script: str, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launches, "argv", lambda *_: [sys.executable, "-c", script])
    monkeypatch.setattr(launches, "LAUNCH_SECONDS", 1.0)
    monkeypatch.setattr(launches, "START_SECONDS", 1.0)
    with pytest.raises(LaunchError, match=told):
        perform(OPEN_MPI, launch(), 0, tmp_path)


def launch(**more: Any) -> Launch:
    fields = {"case": "c", "subject": "s", "metric": "speed", "unit": "1/s", "measure": "training", "ranks": 1}
    return Launch(**fields | {"options": {}, "seconds": 0.0} | more)


def test_a_failed_launch_is_a_failed_row_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fake(launcher: Launcher, launch: Launch, repeat: int, scratch: Path) -> list[dict[str, Any]]:
        if launch.subject == "downpour":
            raise LaunchError("no result within 63 s", "the stacks")
        entry = {"case": launch.case, "subject": launch.subject, "metric": launch.metric, "unit": "1/s"}
        return [entry | {"value": 10.0 if launch.subject == "none" else 5.0}]

    monkeypatch.setattr(main, "perform", fake)
    monkeypatch.setattr(main, "find_launcher", lambda: OPEN_MPI)
    out = tmp_path / "rows.json"
    words = f"scaling --ranks 2 --strategies downpour;sync --repeats 2 --results {tmp_path} --json {out}"
    assert call(monkeypatch, *words.split()) == 1
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    rows = json.loads(out.read_text())
    assert rows == json.loads((folder / "rows.json").read_text())
    found = {(row["subject"], row["metric"]): row for row in rows}
    assert found["sync", "ratio_to_none"]["runs"] == [0.5, 0.5]
    failed = found["downpour", "samples_per_second"]
    assert failed["value"] is None
    assert failed["error"].startswith("2 times, first: no result within 63 s")
    assert (folder / "failed-2-ranks-downpour-0.log").read_text() == "the stacks"
    noted = [json.loads(line) for line in (folder / "launches.jsonl").read_text().splitlines()]
    assert sorted((note["repeat"], note["subject"]) for note in noted) == sorted(
        (repeat, subject) for repeat in (0, 1) for subject in ("none", "downpour", "sync")
    )
    record = json.loads((folder / "bench.json").read_text())
    assert record["command"] == "hpcasync bench " + shlex.join(words.split())
    assert record["finished"] is not None
    assert {path.name for path in folder.iterdir()} >= {"table.md", "plot.svg", "plot.png"}
    assert "failed: 2 times" in capsys.readouterr().out


def test_an_interrupt_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    performed: list[str] = []

    def fake(launcher: Launcher, launch: Launch, repeat: int, scratch: Path) -> list[dict[str, Any]]:
        if performed:
            raise KeyboardInterrupt
        performed.append(launch.subject)
        return [{"case": "2 ranks", "subject": launch.subject, "metric": "m", "unit": "", "value": 1.0}]

    monkeypatch.setattr(main, "perform", fake)
    monkeypatch.setattr(main, "find_launcher", lambda: OPEN_MPI)
    assert call(monkeypatch, "overlap", "--results", str(tmp_path)) == 130
    (folder,) = tmp_path.iterdir()
    assert [row["subject"] for row in json.loads((folder / "rows.json").read_text())] == performed


def test_names_and_counts() -> None:
    assert names("--x", " a, b ", ["a", "b"]) == ["a", "b"]
    assert names("--x", "", ["a"]) == []
    assert counts("--ranks", "1, 4") == [1, 4]


@pytest.mark.alone
@pytest.mark.timeout(600)  # four launches, on a machine that others may load
def test_world_is_measured_on_two_real_ranks(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    words = [
        "world",
        "--quick",
        "--ranks",
        "2",
        "--strategies",
        "downpour",
        "--results",
        str(tmp_path),
        "--json",
        str(out),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "hpcasync.cli", "bench", *words],
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    for row in rows:
        assert list(row) == ["bench", "case", "subject", "metric", "value", "unit", "runs"]
        assert row["bench"] == "world"
        assert math.isfinite(row["value"])
        assert row["runs"] == [row["value"]]
    cases = {row["case"] for row in rows}
    assert {"push 1 MiB", "pull 1 MiB", "allreduce 4 KiB, 2 ranks", "step of 10 k parameters"} <= cases
    assert any(row["metric"] == "ratio_to_mpi" for row in rows)
