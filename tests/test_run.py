"""The life of a run: what it leaves behind, when it stops, how it fails. Simulated ranks, and real ones at the end."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcasync.errors import RunFailure, UsageError
from hpcasync.json_file import finite
from hpcasync.launch.boxes import ERROR, LOST, UNBORN, WARNING
from hpcasync.launch.execute import REQUEUE
from hpcasync.run import Metric, Options, main, metrics
from hpcasync.run.gather import broadcast_text, first_failure, gather_text
from hpcasync.run.metrics import Lines, Totals, summarize
from hpcasync.run.record import Record, create_folder, mark_failed
from hpcasync.world import World
from tests import tiny_job

JOB = Path(tiny_job.__file__)


def simulate(tmp_path: Path, *words: str, name: str = "run") -> tuple[int, Path]:
    """Run the tiny job on simulated ranks in this process: exit code and folder."""
    argv = ["--world", "sim", "--results", str(tmp_path), "--name", name, *words]
    with pytest.raises(SystemExit) as end:
        main(tiny_job.train, tiny_job.Tiny, argv)
    assert isinstance(end.value.code, int)
    return end.value.code, tmp_path / name


def read(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return document


def lines(folder: Path, rank: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"metrics.rank{rank}.jsonl").read_text().splitlines()]


def values(folder: Path) -> dict[str, Any]:
    return {name: entry["value"] for name, entry in read(folder)["summary"].items()}


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    code, folder = simulate(tmp_path, "--ranks", "3", "--steps", "5", "--batch-size", "4", "--strategy", "downpour")
    assert code == 0
    assert folder.stat().st_mode & 0o777 == 0o700
    files = {path.name for path in folder.iterdir()}
    assert files == {"run.json", "DONE", *(f"metrics.rank{rank}.jsonl" for rank in range(3))}
    document = read(folder)
    assert (document["schema"], document["status"], document["job"]) == ("hpcasync.run/1", "done", "tiny_job")
    assert document["strategy"]["name"] == "downpour"
    assert (document["world"]["kind"], document["world"]["size"]) == ("sim", 3)
    assert (document["config"]["steps"], document["config"]["epochs"]) == (5, None)
    assert document["started"] <= document["finished"]
    for rank in range(3):
        steps = [line for line in lines(folder, rank) if "loss" in line]
        assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
        assert [line["samples"] for line in steps] == [4, 8, 12, 16, 20]
        assert set(steps[0]) == {"step", "seconds", "loss", "samples", "staleness", "waited"}


def test_the_summary_of_equal_ranks_that_never_wait(tmp_path: Path) -> None:
    _, folder = simulate(tmp_path, "--ranks", "4", "--steps", "6", "--strategy", "downpour", "--step-seconds", "0.5")
    summary = values(folder)
    assert summary["steps"] == 24
    assert summary["seconds"] == pytest.approx(3.0)
    assert summary["samples_per_second"] == pytest.approx(4 * 32 / 0.5)
    assert summary["ideal_share"] == pytest.approx(1.0)
    assert "seconds_to_target" not in summary


def test_sync_with_a_slow_rank_has_its_closed_form(tmp_path: Path) -> None:
    """n ranks at the pace of one that is f times slower reach n / f of (n - 1 + 1 / f): 4 ranks, f = 4: 0.31."""
    _, folder = simulate(tmp_path, "--ranks", "4", "--steps", "6", "--slow", "3:4")
    assert values(folder)["ideal_share"] == pytest.approx((4 / 4) / (3 + 1 / 4))
    assert values(folder)["seconds"] == pytest.approx(24.0)


def test_epochs_are_passes_over_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = simulate(tmp_path, "--ranks", "2", "--epochs", "3")
    assert values(folder)["steps"] == 2 * 3 * tiny_job.BATCHES
    evaluations = [line["step"] for line in lines(folder, 0) if "evaluation" in line]
    assert evaluations == [8, 16, 24, 24]
    assert not any("evaluation" in line for line in lines(folder, 1))
    told = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in told[:-1]] == ["epoch 1", "epoch 2", "epoch 3", "drained"]


def test_seconds_end_every_rank_by_its_own_clock(tmp_path: Path) -> None:
    _, folder = simulate(tmp_path, "--ranks", "2", "--seconds", "8", "--slow", "1:4", "--strategy", "downpour")
    assert [line["step"] for line in lines(folder, 0) if "loss" in line][-1] == 8
    assert len(lines(folder, 1)) == 2


def test_the_target_ends_all_ranks(tmp_path: Path) -> None:
    words = ["--ranks", "3", "--target", "1e-3", "--seconds", "1000", "--evaluate-every", "1", "--strategy", "downpour"]
    _, folder = simulate(tmp_path, *words)
    summary = values(folder)
    evaluations = [line for line in lines(folder, 0) if "evaluation" in line]
    reached = next(line for line in evaluations if line["evaluation"]["loss"] <= 1e-3)
    assert summary["seconds_to_target"] == reached["seconds"] < 1000
    assert summary["seconds"] <= reached["seconds"] + 1.0  # a step of one second, in which the others hear of it


def test_the_target_is_about_the_metric_that_the_job_declares(tmp_path: Path) -> None:
    """An area that rises from 30 % or so: 99 % is reached late; its direction is in no word of its name."""
    words = ["--ranks", "3", "--metric", "auc", "--target", "99", "--seconds", "1000", "--evaluate-every", "1"]
    _, folder = simulate(tmp_path, *words)
    evaluations = [line for line in lines(folder, 0) if "evaluation" in line]
    assert [list(line["evaluation"]) for line in evaluations] == [["auc", "loss"]] * len(evaluations)
    reached = [line["evaluation"]["auc"] >= 99 for line in evaluations]
    assert not reached[0]
    assert values(folder)["seconds_to_target"] == evaluations[reached.index(True)]["seconds"]
    document = read(folder)
    assert document["metrics"] == [{"name": "auc", "unit": "%", "better": "higher"}]
    assert [(document["summary"][name]["unit"], document["summary"][name]["better"]) for name in ("auc", "loss")] == [
        ("%", "higher"),
        ("", ""),
    ]


def test_the_last_line_tells_the_model_that_reached_the_target_from_the_drained_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stale gradients are still on their way when the target is reached: after they have come the loss is another."""
    words = ["--ranks", "3", "--target", "1e-2", "--evaluate-every", "1", "--strategy", "stale"]
    _, folder = simulate(tmp_path, *words)
    losses = [line["evaluation"]["loss"] for line in lines(folder, 0) if "evaluation" in line]
    reached = next(loss for loss in losses if loss <= 1e-2)
    assert reached != losses[-1]
    seconds = values(folder)["seconds_to_target"]
    last = capsys.readouterr().out.splitlines()[-1]
    expected = f"target 0.01 reached after {seconds:.2f} s (then {reached:.4f}; {losses[-1]:.4f} after draining)"
    assert expected in last
    assert f"loss {losses[-1]:.4f}  auc" in last


def test_a_metric_has_one_of_two_directions() -> None:
    with pytest.raises(UsageError, match="better='up'"):
        Metric("auc", better="up")  # type: ignore[arg-type]


def test_a_target_that_was_not_reached_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = simulate(tmp_path, "--steps", "2", "--target", "-1")
    assert "  target -1 not reached  " in capsys.readouterr().out
    assert values(folder)["seconds_to_target"] is None


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path) -> None:
    words = ["--ranks", "3", "--steps", "5", "--strategy", "hogwild", "--jitter", "exponential"]
    same = [lines(simulate(tmp_path, *words, name=name)[1], 2) for name in ("a", "b")]
    other = lines(simulate(tmp_path, *words, "--seed", "1", name="c")[1], 2)
    assert same[0] == same[1] != other


def test_an_existing_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/precious").write_text("kept")
    code, folder = simulate(tmp_path)
    assert code == 2
    told = capsys.readouterr().err
    assert told == f"hpcasync: error: {folder} exists; choose another --name or --results, or move it away\n"
    assert [path.name for path in folder.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--strategy", "magic"], "unknown strategy 'magic'; the known ones are sync"),
        (["--strategy", "downpour", "push=x"], "push=x"),
        (["--strategy", "downpour", "bound=-1"], "bound=-1"),
        (["--frobnicate", "1"], "unknown option --frobnicate; the known options are --strategy"),
        (["--lr", "fast"], "--lr fast: it must be a number"),
        (["--lr", "0"], "--lr 0.0: it must be a positive number"),
        (["--steps", "0"], "--steps 0: it must be 1 or more"),
        (["--steps", "1.5"], "--steps 1.5: it must be a whole number"),
        (["--seconds", "nan"], "--seconds nan: it must be a positive number"),
        (["--checkpoint-every", "0"], "--checkpoint-every 0.0: it must be a positive number"),
        (["--seed", "-1"], "--seed -1: it must be 0 or more"),
        (["--name", "a/b"], "--name a/b: it must be a folder's name"),
        (["--slow", "9:2"], "--slow 9:2: the ranks are 0 to 3"),
        (["--jitter", "weird"], "law 'weird' is unknown"),
        (["--world", "mpi", "--ranks", "3"], "--ranks 3 is for --world sim"),
        (["--fail", "mistake", "--when", "early"], "a mistake of the user"),
        (["--fail", "mistake", "--when", "early", "--failing-rank", "2"], "a mistake of the user"),
        (["--fail", "mistake"], "a mistake of the user"),
        (["--metric", "none", "--target", "1"], "--target 1: the job does not declare the metric that is meant"),
        (["--metric", "absent"], "evaluate() has returned loss, auc, but run.start() declares the metric 'absent'"),
        (["--fail", "no-start"], "train() has returned without run.start()"),
        (["--fail", "no-step"], "its loop never calls run.step(loss), so nothing is trained"),
        (["--fail", "own-step"], "optimizer.step() is part of run.step(loss): take it out of the loop"),
        (["--fail", "own-step", "--strategy", "hogwild"], "optimizer.step() is part of run.step(loss)"),
        (["--fail", "no-replica"], "run.start(Linear, ...): it takes Replica(model)"),
    ],
)
def test_a_mistake_is_told_on_one_line(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(tmp_path, *words)[0] == 2
    told = capsys.readouterr().err
    assert told.startswith("hpcasync: error: ")
    assert complaint in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("fail", ["raise", "exit", "interrupt"])
@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("rank", [-1, 2])
def test_an_exception_is_told_once(
    fail: str, when: str, rank: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = simulate(tmp_path, "--fail", fail, "--when", when, "--failing-rank", str(rank))
    assert code == 1
    assert capsys.readouterr().err.count("Traceback") == 1
    assert folder.exists() == (when == "late")
    if folder.exists():
        failure = json.loads((folder / "FAILED.json").read_text())
        assert rank in (-1, failure["rank"])
        assert "in fail_perhaps" in failure["traceback"]
        assert read(folder)["status"] == "failed"
        assert not (folder / "DONE").exists()


def test_a_signal_ends_a_run_cleanly(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    code, folder = simulate(tmp_path, "--fail", "signal", "--failing-rank", "1", "--strategy", "downpour")
    assert signal.getsignal(signal.SIGTERM) is before
    assert code == 128 + signal.SIGTERM
    assert read(folder)["status"] == "interrupted"
    assert not (folder / "FAILED.json").exists()
    assert 0 < values(folder)["steps"] < 4 * 10 * tiny_job.BATCHES


def test_the_default_name_never_meets_another(tmp_path: Path) -> None:
    folders = {create_folder(tmp_path, None, "job-sync") for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.name.startswith("job-sync-2") for folder in folders)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file"):
        create_folder(tmp_path / "file", "run", "")


def test_one_rank_speaks_for_a_failure(tmp_path: Path) -> None:
    Record.create(tmp_path, {})
    assert mark_failed(tmp_path, 1, "first", "")
    assert not mark_failed(tmp_path, 0, "second", "")
    assert json.loads((tmp_path / "FAILED.json").read_text())["error"] == "first"


def test_numbers_that_json_cannot_hold() -> None:
    assert finite({"a": [float("nan"), float("inf"), 1.5, True]}) == {"a": [None, "inf", 1.5, True]}


def test_options_default_to_ten_epochs() -> None:
    options = Options()
    options.resolve()
    assert options.epochs == 10
    options = Options(seconds=3.0)
    options.resolve()
    assert options.epochs is None


def test_a_failure_is_told_where_nothing_can_be_written(tmp_path: Path) -> None:
    assert mark_failed(tmp_path / "gone", 1, "first", "")
    (tmp_path / "run.json").write_text("{")
    assert mark_failed(tmp_path, 1, "first", "")


def test_the_ranks_tell_each_other(ranks: Any) -> None:
    def main(world: World) -> None:
        texts = [f"rank {rank} " + "é" * rank for rank in range(world.size)]
        assert gather_text(world, texts[world.rank]) == texts
        assert broadcast_text(world, texts[world.rank]) == texts[0]
        assert first_failure(world, 0) == (-1, 0)
        last = world.size - 1
        assert first_failure(world, 2 if world.rank == last else 0) == (last, 2)
        everyone = Totals(steps=world.rank, wall_seconds=0.5).gather(world)
        assert [(rank.steps, rank.wall_seconds) for rank in everyone] == [(rank, 0.5) for rank in range(world.size)]

    ranks(main)


def test_the_summary_by_hand() -> None:
    fast = Totals(
        10, 100, compute_seconds=4.0, wall_seconds=5.0, waited_seconds=1.0, staleness_count=10, staleness_sum=20
    )
    slow = Totals(5, 50, compute_seconds=8.0, wall_seconds=8.0, staleness_count=5, staleness_sum=10, staleness_max=7)
    slow.dropped, slow.non_finite = 3, 2
    summary = {name: entry["value"] for name, entry in summarize([fast, slow]).items()}
    assert summary == {
        "seconds": 8.0,
        "samples_per_second": 150 / 8,
        "ideal_share": (150 / 8) / (100 / 4 + 50 / 8),
        "staleness_mean": 2.0,
        "staleness_max": 7,
        "dropped": 3,
        "non_finite": 2,
        "wait_share": 0.1,
        "steps": 15,
    }


def launch(tmp_path: Path, ranks: int, *words: str) -> subprocess.Popen[str]:
    """`hpcasync run` of the tiny job on real ranks."""
    argv = [sys.executable, "-m", "hpcasync.cli", "run", "-n", str(ranks), str(JOB)]
    return subprocess.Popen(
        [*argv, "--results", str(tmp_path), "--name", "run", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(JOB.parent.parent)},
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, told = process.communicate(timeout=100)
    return process.returncode, told


def test_real_ranks_leave_a_whole_run_behind(tmp_path: Path) -> None:
    process = launch(tmp_path, 2, "--steps", "5", "--strategy", "downpour", "--slow", "1:2", "--step-seconds", "0.001")
    assert outcome(process) == (0, "")
    folder = tmp_path / "run"
    assert (folder / "DONE").exists()
    assert [host["rank"] for host in read(folder)["hosts"]] == [0, 1]
    assert values(folder)["steps"] == 10


@pytest.mark.parametrize("rank", [-1, 1])
def test_a_real_rank_that_raises_ends_all(rank: int, tmp_path: Path) -> None:
    code, told = outcome(launch(tmp_path, 2, "--fail", "raise", "--failing-rank", str(rank)))
    assert code == 1
    assert told.count("Traceback") == 1
    assert told.rstrip().endswith("fails as it was told")
    assert read(tmp_path / "run")["status"] == "failed"
    assert seconds_since_failure(tmp_path / "run") < 30


def seconds_since_failure(folder: Path) -> float:
    """Less than 2 on a machine that has nothing else to do."""
    return time.time() - (folder / "FAILED.json").stat().st_mtime


def test_a_real_rank_without_a_batch_is_one_line(tmp_path: Path) -> None:
    code, told = outcome(launch(tmp_path, 2, "--fail", "empty", "--failing-rank", "1"))
    assert seconds_since_failure(tmp_path / "run") < 30
    assert (code, told) == (2, f"{ERROR}rank 1 has no batch: fewer samples in its shard than --batch-size?\n")


def test_a_death_after_the_end_is_of_no_interest(tmp_path: Path) -> None:
    assert outcome(launch(tmp_path, 2, "--steps", "3", "--fail", "last", "--failing-rank", "1")) == (0, "")
    assert (tmp_path / "run/DONE").exists()


def test_a_real_rank_that_leaves_without_a_word_is_survived(tmp_path: Path) -> None:
    code, told = outcome(launch(tmp_path, 3, "--fail", "leave", "--failing-rank", "1"))
    first, second = told.splitlines()
    assert (code, first) == (0, f"{LOST}rank 1: exit code 3")
    assert second.startswith(f"{LOST}rank 1 after ")
    assert second.endswith("going on with 0, 2")
    assert (tmp_path / "run/DONE").exists()


def test_a_real_rank_that_ends_before_mpi_has_started_ends_all(tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text("import os, sys\nif os.environ['PMIX_RANK'] == '1': sys.exit(4)\nimport hpcasync.mpi\n")
    done = subprocess.run(
        [sys.executable, "-m", "hpcasync.cli", "run", "-n", "2", str(job)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, f"{UNBORN} (exit code 4)\n")


@pytest.mark.timeout(100)
def test_the_second_signal_ends_a_loop_that_does_not_end(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.tiny_job", "--world", "sim", "--fail", "hang", "--results", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "hangs\n"
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "hpcasync: stopping after this step; once more to end at once\n"
    process.send_signal(signal.SIGINT)
    assert process.wait() == -signal.SIGINT
    process.communicate()


class FullDisk:
    """The file system of a run's metrics is full from one write to another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, writes: range) -> None:
        self._append, self._writes, self._count = Lines._append, writes, 0
        monkeypatch.setattr(Lines, "_append", lambda lines, text: self._write(lines, text))
        monkeypatch.setattr(metrics, "FLUSH_SECONDS", 0.0)

    def _write(self, lines: Lines, text: str) -> None:
        self._count += 1
        if self._count in self._writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._append(lines, text)


def test_a_full_disk_costs_metrics_and_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FullDisk(monkeypatch, range(3, 6))
    code, folder = simulate(tmp_path, "--ranks", "1", "--steps", "8", "--strategy", "downpour")
    assert code == 1
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"{WARNING}{folder}: metrics cannot be written (No space left on device); the run goes on without them",
        f"{ERROR}{folder}: 3 lines of metrics could not be written; apart from that the run is done",
    ]
    assert [line["step"] for line in lines(folder, 0) if "loss" in line] == [1, 2, 6, 7, 8]
    assert read(folder)["status"] == "done"


def test_a_line_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Lines(tmp_path / "lines")
    written.add({"a": 1})
    written.flush()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # EFBIG comes after a part has been written, as ENOSPC does
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12, limit[1]))
        written.add({"b": 2})
        with pytest.raises(RunFailure, match=f"{tmp_path} cannot be written: File too large"):
            written.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert (tmp_path / "lines").read_text() == '{"a": 1}\n'


def test_a_folder_that_is_gone_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics, "FLUSH_SECONDS", 0.0)
    code, folder = simulate(tmp_path, "--ranks", "2", "--fail", "remove", "--failing-rank", "1")
    assert code == 1
    assert capsys.readouterr().err == f"{ERROR}{folder} cannot be written: No such file or directory\n"


@pytest.mark.parametrize("words", [[], ["--lr", "x"], ["--fail", "mistake", "--when", "early", "--failing-rank", "1"]])
def test_a_mistake_on_real_ranks_is_one_line(words: list[str], tmp_path: Path) -> None:
    if not words:
        (tmp_path / "run").mkdir()
    code, told = outcome(launch(tmp_path, 2, *words))
    assert code == 2
    assert told.startswith("hpcasync: error: ")
    assert told.count("\n") == 1


def test_an_interrupt_of_real_ranks_is_clean(tmp_path: Path) -> None:
    process = launch(tmp_path, 2, "--seconds", "100", "--step-seconds", "0.01", "--strategy", "downpour")
    while not (tmp_path / "run/metrics.rank1.jsonl").exists():  # from here on the ranks listen to signals
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, told = outcome(process)
    assert code == 128 + signal.SIGINT
    assert told.splitlines() == [
        "hpcasync: SIGINT: the ranks write a checkpoint and end; a second Ctrl-C or SIGTERM ends them now",
        "hpcasync: stopped by SIGINT; --resume --name run goes on",
    ]
    steps = values(tmp_path / "run")["steps"]
    assert steps > 0
    process = launch(tmp_path, 2, "--seconds", "100", "--step-seconds", "0.01", "--strategy", "downpour", "--resume")
    while len(read(tmp_path / "run")["attempts"]) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGUSR1)  # as a batch script does when its time is over
    code, told = outcome(process)
    assert code == REQUEUE
    assert values(tmp_path / "run")["steps"] > steps


def test_evaluation_leaves_the_training_replica_alone(tmp_path: Path) -> None:
    plain = lines(simulate(tmp_path, "--steps", "6", name="a")[1], 0)
    evaluated = lines(simulate(tmp_path, "--steps", "6", "--evaluate-every", "1", name="b")[1], 0)
    assert [line for line in plain if "loss" in line] == [line for line in evaluated if "loss" in line]
    assert torch.is_grad_enabled()
