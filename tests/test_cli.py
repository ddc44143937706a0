"""The hpcasync command: its help, its one line for every mistake, and the command it prints."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from hpcasync import cli

JOB = str(Path(__file__).with_name("tiny_job.py"))


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hpcasync", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


def test_help_shows_every_verb_with_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--help") == 0
    told = capsys.readouterr().out
    for name, verb in cli.VERBS.items():
        assert verb.example.startswith(f"hpcasync {name} ")
        assert verb.example in told


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_has_help(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, verb, "--help") == 0
    assert f"hpcasync {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["walk"], "unknown verb 'walk'; the verbs are run, submit"),
        (["run"], "no job file"),
        (["run", "-n", "2"], "no job file"),
        (["run", "-n", "0", JOB], "-n 0: it must be 1 or more"),
        (["run", "-n", "-3", JOB], "-n -3: it must be 1 or more"),
        (["run", "-n", "x", JOB], "x: it must be a whole number"),
        (["run", "-n"], "-n"),
        (["run", "missing.py"], "missing.py: there is no such job file"),
        (["run", "--frobnicate", JOB], "unknown option --frobnicate; the known options are -n --world --slow"),
        (["run", "--step-seconds", "long", JOB], "--step-seconds long: it must be a number"),
        (["run", "--world", "cuda", JOB], "'cuda'"),
        (["report", "nowhere/at/all"], "nowhere/at/all"),
        (["report", "--frobnicate"], "unknown option --frobnicate; the known options are --output"),
    ],
)
def test_a_mistake_is_told_on_one_line(
    words: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("hpcasync: error: ")
    assert complaint in told.err
    assert told.err.count("\n") == 1


def dry_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert call(monkeypatch, "run", "--dry-run", *words) == 0
    return shlex.split(capsys.readouterr().out)


def test_dry_run_prints_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = dry_run(
        monkeypatch, capsys, "-n", "3", "--slow", "1:2", "--slow", "2:3", JOB, "--name", "a b", "--threads=2"
    )
    assert words[words.index("-n") + 1] == "3"
    assert any("OMP_NUM_THREADS" in word for word in words)
    program = words[words.index(sys.executable) :]
    assert program == [sys.executable, JOB, "--slow", "1:2", "--slow", "2:3", "--name", "a b", "--threads=2"]


@pytest.mark.parametrize("words", [["-n", "5", "--world", "sim", JOB], ["-n", "5", JOB, "--world=sim"]])
def test_simulated_ranks_need_no_launcher(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = dry_run(monkeypatch, capsys, *words)
    assert printed[:2] == [sys.executable, JOB]
    assert printed[-2:] == ["--ranks", "5"]


def test_a_jobs_help_needs_no_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(monkeypatch, capsys, "-n", "4", JOB, "--help") == [sys.executable, JOB, "--help"]
