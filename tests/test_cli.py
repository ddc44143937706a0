"""The hpcasync command: its help, its one line for every mistake, and the command it prints."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path

import pytest

from hpcasync import cli
from hpcasync.launch import environment
from hpcasync.launch.check import check_options

JOB = str(Path(__file__).with_name("tiny_job.py"))


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hpcasync", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


def test_names_and_descriptions_of_verbs_stand_in_two_columns() -> None:
    lines = cli.usage().splitlines()
    described = [line for line in lines if line.strip().split(" ")[0] in cli.VERBS and line.startswith("  ")]
    assert len(described) == len(cli.VERBS)
    assert len({len(line) - len(line[2:].partition("  ")[2].lstrip()) for line in described}) == 1


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
        (["stauts"], "unknown verb 'stauts'; did you mean status?"),
        (["report", "--ouput", "x.html"], "unknown option --ouput; did you mean --output?"),
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
    program = words[words.index(JOB) - 1 :]
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


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--lr", "fast"], "--lr fast: it must be a number"),
        (["--strategy", "egaer"], "unknown strategy 'egaer'; did you mean eager?"),
        (["--stratgey", "eager"], "unknown option --stratgey; did you mean --strategy?"),
        (["-n", "64"], f"-n stands before the job's name: hpcasync run -n 64 {JOB} ..."),
        (["--steps", "1", "--dry-run"], f"--dry-run stands before the job's name: hpcasync run --dry-run {JOB} ..."),
        (["--binding=none"], f"--binding stands before the job's name: hpcasync run --binding none {JOB} ..."),
    ],
)
def test_a_jobs_options_are_read_before_anything_is_launched(
    words: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "execute", lambda *words, **more: pytest.fail("launched"))
    assert call(monkeypatch, "run", "-n", "2", JOB, *words) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == f"hpcasync: error: {complaint}"
    assert [line for line in told[:-1] if not line.startswith("hpcasync: warning: ")] == []


def test_many_more_ranks_than_cpus_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(environment, "allocation", lambda: ())
    for ranks, warned in (("4", 0), ("64", 1)):
        assert call(monkeypatch, "run", "--dry-run", "-n", ranks, JOB) == 0
        told = capsys.readouterr().err
        assert told.count("\n") == told.count("hpcasync: warning: 64 ranks share 2 CPUs: ") == warned


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("from hpcasync.run import main\nraise RuntimeError('no luck')", 1, "RuntimeError: no luck"),
        ("from hpcasync.run import main\nthis is no Python", 1, "SyntaxError"),
        ("import os\nos._exit(3)  # a script that reads its words by itself would run to its end", 0, ""),
    ],
)
def test_only_a_job_that_ends_in_main_is_asked(text: str, code: int, told: str, tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text(text)
    checked = check_options([sys.executable, str(job)])
    assert checked.code == code
    assert told in checked.told


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 85)])
def test_a_signal_while_options_are_read_ends_it(number: int, code: int, tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text(
        f"import os, time\nos.kill(os.getppid(), {number})\ntime.sleep(100)\nfrom hpcasync.run import main\n"
    )
    assert check_options([sys.executable, str(job)]).code == code
