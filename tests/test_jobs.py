"""The jobs as their users call them: what a short run leaves behind, and what a mistake is answered with."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hpcasync.data import cifar
from hpcasync.run import main

JOB = Path(__file__).parents[1] / "jobs" / "image_classification.py"


@pytest.fixture(scope="module")
def job() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location(JOB.stem, JOB)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[JOB.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[JOB.stem]


@pytest.fixture
def call(job: ModuleType, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """``call("--steps", "3")`` runs the job on simulated ranks in this process; its exit code."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}

    def run(*words: str) -> int:
        with pytest.raises(SystemExit) as end:
            main(job.train, job.ImageClassification, ["--world", "sim", "--results", str(tmp_path / "results"), *words])
        return int(end.value.code or 0)

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("strategy", ["sync", "stale", "hogwild", "downpour"])
def test_four_simulated_ranks_learn_the_digits(call, tmp_path, strategy):
    assert call("--strategy", strategy, "--steps", "60", "--name", "a") == 0
    kept = record(tmp_path / "results" / "a")
    assert kept["status"] == "done"
    assert kept["job"] == "image_classification"
    assert kept["world"]["size"] == 4
    assert kept["summary"]["steps"]["value"] == 4 * 60
    assert kept["summary"]["accuracy"]["value"] >= 0.9


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_both_models_take_colour_images_from_a_folder(call, tmp_path, model):
    for name in (*cifar.TRAIN, cifar.TEST):
        (tmp_path / name).write_bytes(bytes(4 * cifar.RECORD_BYTES))
    words = ["--data", str(tmp_path), "--model", model, "--batch-size", "2", "--steps", "2", "--name", "a"]
    assert call(*words) == 0
    assert record(tmp_path / "results" / "a")["summary"]["accuracy"]["value"] == 1.0  # every label is 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategy", "nosuch"], "unknown strategy 'nosuch'; the known ones are sync, "),
        (
            ["--strategy", "downpour", "pul=4"],
            "strategy downpour has no option 'pul'; did you mean pull?",
        ),
        (["--data", "/nowhere"], "/nowhere: no such folder"),
        (["--batch-size", "361"], "batch size 361: 1437 samples on 4 ranks leave rank 0 only 360"),
        (["--batch-size", "0"], "--batch-size 0: "),
        (["--model", "rnn"], "rnn"),
        (["--nosuch", "1"], "unknown option --nosuch"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(call, tmp_path, capsys, words, message):
    assert call(*words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("hpcasync: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_truncated_data_file_is_named(call, tmp_path, capsys):
    for name in (*cifar.TRAIN, cifar.TEST):
        (tmp_path / name).write_bytes(bytes(4 * cifar.RECORD_BYTES))
    (tmp_path / "data_batch_3.bin").write_bytes(bytes(5000))
    assert call("--data", str(tmp_path)) == 2
    assert "data_batch_3.bin: 5000 bytes; expected a multiple of 3073" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_results_folder_that_exists_is_left_alone(call, tmp_path, capsys):
    folder = tmp_path / "results" / "a"
    folder.mkdir(parents=True)
    (folder / "mine").write_text("kept")
    assert call("--name", "a", "--steps", "1") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_one_rank_needs_no_launcher(tmp_path):
    words = [sys.executable, str(JOB), "--steps", "5", "--results", str(tmp_path), "--name", "a"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert record(tmp_path / "a")["world"]["size"] == 1


def test_two_real_ranks_by_the_command_line(tmp_path):
    words = [sys.executable, "-m", "hpcasync.cli", "run", "-n", "2", str(JOB)]
    options = [
        "--strategy",
        "downpour",
        "pull=4",
        "bound=8",
        "--steps",
        "40",
        "--results",
        str(tmp_path),
        "--name",
        "a",
    ]
    done = subprocess.run([*words, *options], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    kept = record(tmp_path / "a")
    assert kept["world"]["size"] == 2
    assert kept["strategy"] == {"name": "downpour", "options": {"push": 1, "pull": 4, "bound": 8}}
    assert kept["summary"]["steps"]["value"] == 2 * 40
    assert sorted(path.name for path in (tmp_path / "a").glob("metrics.*")) == [
        f"metrics.rank{r}.jsonl" for r in (0, 1)
    ]
