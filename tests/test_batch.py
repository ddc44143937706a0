"""The shell library of the batch scripts, without Slurm and MPI: a Python that only pretends, and so does scontrol."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1]
SCRIPT = """
set -Eeuo pipefail
. hpcasync/launch/batch.sh
batch_begin
batch_run "$(batch_name "$(basename "$1" .py)")" "$@" || true
batch_end
"""
SWEEP = SCRIPT.replace('batch_run "$(batch_name "$(basename "$1" .py)")"', "batch_sweep mine")
PREEMPTED = "PreemptTime=2026-01-01T00:00:00"
TERM_TO_ALL = 'kill -TERM "$PPID"; sleep 0.1; exit 143'


class Trial:
    """Runs ``SCRIPT`` with a stand-in for Python, which a line of shell describes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.env = folder, {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.env |= {"SLURM_JOB_ID": "7", "HPCASYNC_HOME": str(HOME), "HPCASYNC_RESULTS": str(folder / "results")}
        self.env |= {"PATH": f"{folder}:{self.env['PATH']}", "HPCASYNC_PYTHON": "fake-python"}
        self.program("scontrol", f'echo "$*" >>{folder}/scontrol.log; echo JobId=7 "$SHOWN"')
        self.env["SHOWN"] = "PreemptTime=None"

    def program(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)

    def run(self, python: str, *words: str, script: str = SCRIPT, **variables: str) -> tuple[int, str]:
        """Exit code and standard error when Python is this line."""
        self.program("fake-python", python)
        told = subprocess.run(
            ["bash", "-c", script, "test.sbatch", *(words or ("job.py",))],
            cwd=HOME, env=self.env | variables, capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        return told.returncode, told.stderr

    @property
    def requeued(self) -> list[str]:
        lines = (self.folder / "scontrol.log").read_text().splitlines()
        return [line.removeprefix("requeue ") for line in lines if line.startswith("requeue ")]


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


def done(trial: Trial, name: str = "job-7") -> str:
    return f"mkdir -p {trial.folder}/results/{name} && touch {trial.folder}/results/{name}/DONE"


def checkpoint(trial: Trial, step: int = 5, name: str = "job-7") -> str:
    return f"mkdir -p {trial.folder}/results/{name}/ckpt/{step}"


def test_a_run_that_is_done(trial: Trial) -> None:
    assert trial.run(done(trial))[0] == 0
    assert trial.requeued == []


def test_what_python_is_told(trial: Trial) -> None:
    trial.run(f'printf "%s\\n" "$@" >{trial.folder}/words', "jobs/job.py", "--strategy", "eager", "bound=8")
    assert (trial.folder / "words").read_text().split() == [
        "-m", "hpcasync.cli", "run", "--launcher", "mpirun", "--binding", "auto", "jobs/job.py",
        "--results", f"{trial.folder}/results", "--name", "job-7", "--resume", "--strategy", "eager", "bound=8",
    ]  # fmt: skip


def test_exit_code_0_without_done_is_an_error(trial: Trial) -> None:
    code, said = trial.run("exit 0")
    assert code == 1
    assert f"error: {trial.folder}/results/job-7 has no DONE, though the exit code is 0" in said


@pytest.mark.parametrize("code", [1, 2, 137])
def test_the_code_of_a_run_that_has_failed_is_the_jobs(trial: Trial, code: int) -> None:
    assert trial.run(f"exit {code}")[0] == code
    assert trial.requeued == []


@pytest.mark.parametrize(
    ("variables", "target"),
    [
        ({}, "7"),
        ({"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}, "5_3"),
        ({"SLURM_HET_JOB_ID": "6"}, "6"),
    ],
)
def test_the_right_job_is_requeued(trial: Trial, variables: dict[str, str], target: str) -> None:
    assert trial.run(f"{checkpoint(trial, name=f'job-{target}')}; exit 85", **variables)[0] == 85
    assert trial.requeued == [target]


def test_a_signal_before_anybody_listens_requeues_after_a_step(trial: Trial) -> None:
    assert trial.run(f'{checkpoint(trial)}; kill -USR1 "$PPID"; kill -USR1 $$; sleep 5')[0] == 85
    assert trial.requeued == ["7"]


@pytest.mark.parametrize(("before", "after"), [(None, None), (None, 0), (5, 5)])
def test_an_attempt_that_keeps_no_step_is_the_last(trial: Trial, before: int | None, after: int | None) -> None:
    if before is not None:
        (trial.folder / "results" / "job-7" / "ckpt" / str(before)).mkdir(parents=True)
    python = "exit 85" if after is None else f"{checkpoint(trial, after)}; exit 85"
    code, said = trial.run(python)
    assert (code, trial.requeued) == (1, [])
    assert "job 7 is not requeued: no step was kept in this attempt: a longer time limit is needed\n" in said


def test_what_was_set_aside_is_not_kept(trial: Trial) -> None:
    assert trial.run(f"{checkpoint(trial, name='job-7/attempt-1')}; exit 85")[0] == 1
    assert trial.requeued == []


def test_a_run_that_ended_in_this_attempt_is_kept(trial: Trial) -> None:
    script = SCRIPT.replace("batch_run", "batch_run first first.py || true\nbatch_run", 1)
    python = f"[[ $* != *first* ]] || {{ {done(trial, 'first')}; exit 0; }}; exit 85"
    assert trial.run(python, script=script)[0] == 85
    assert trial.requeued == ["7"]


def test_a_preemption_requeues_without_a_step_and_counts_for_nothing(trial: Trial) -> None:
    for restarts in range(3):
        assert trial.run("exit 85", HPCASYNC_ATTEMPTS="1", SLURM_RESTART_COUNT=str(restarts), SHOWN=PREEMPTED)[0] == 85
    assert trial.requeued == ["7"] * 3
    code, said = trial.run(f"{checkpoint(trial)}; exit 85", HPCASYNC_ATTEMPTS="1", SLURM_RESTART_COUNT="3")
    assert (code, trial.requeued) == (1, ["7"] * 3)
    assert "error: job 7 is not requeued: this was attempt 1, and HPCASYNC_ATTEMPTS=1" in said
    assert list((trial.folder / "results").iterdir()) == [trial.folder / "results" / "job-7"]


def test_a_preemption_by_slurm_alone_counts_for_nothing(trial: Trial) -> None:
    """Without grace time the job is in the queue again when the script gets SIGTERM."""
    assert trial.run(TERM_TO_ALL, SHOWN="JobState=PENDING Reason=BeginTime")[0] == 128 + signal.SIGTERM
    assert trial.requeued == []
    assert "attempt 1 of at most 1," in trial.run(done(trial), HPCASYNC_ATTEMPTS="1", SLURM_RESTART_COUNT="1")[1]


def test_a_job_that_may_not_be_requeued_is_not(trial: Trial) -> None:
    code, said = trial.run("exit 85", SHOWN=f"Requeue=0 {PREEMPTED}")
    assert (code, trial.requeued) == (1, [])
    assert "error: job 7 is not requeued: it was submitted with --no-requeue\n" in said


def test_a_signal_too_late_changes_nothing(trial: Trial) -> None:
    assert trial.run(f'kill -USR1 "$PPID"; trap "" USR1; sleep 0.2; {done(trial)}')[0] == 0
    assert trial.requeued == []


def test_a_failure_is_not_excused_by_a_signal(trial: Trial) -> None:
    failed = f"mkdir -p {trial.folder}/results/job-7 && touch {trial.folder}/results/job-7/FAILED.json"
    assert trial.run(f'trap "" USR1; kill -USR1 "$PPID"; sleep 0.2; {failed}; exit 1')[0] == 1
    assert trial.requeued == []


@pytest.mark.parametrize("shown", ["PreemptTime=None", PREEMPTED])
def test_after_a_sigterm_to_the_script_nothing_is_requeued(trial: Trial, shown: str) -> None:
    assert trial.run(TERM_TO_ALL, SHOWN=shown)[0] == 128 + signal.SIGTERM
    assert trial.requeued == []


def test_a_sigterm_to_the_ranks_alone_requeues_if_it_is_a_preemption(trial: Trial) -> None:
    assert trial.run("exit 143")[0] == 143
    assert trial.requeued == []
    assert trial.run("exit 143", SHOWN=PREEMPTED)[0] == 85
    assert trial.requeued == ["7"]


def test_ranks_that_a_preemption_kills_before_they_listen_are_requeued(trial: Trial) -> None:
    assert trial.run("exit 1", SHOWN=PREEMPTED)[0] == 85
    assert trial.requeued == ["7"]


def test_attempts_are_capped(trial: Trial) -> None:
    code, said = trial.run(f"{checkpoint(trial)}; exit 85", HPCASYNC_ATTEMPTS="2", SLURM_RESTART_COUNT="1")
    assert (code, trial.requeued) == (1, [])
    assert "error: job 7 is not requeued: this was attempt 2, and HPCASYNC_ATTEMPTS=2" in said
    code, said = trial.run(done(trial), HPCASYNC_ATTEMPTS="2", SLURM_RESTART_COUNT="2")
    assert (code, "error: attempt 3, and HPCASYNC_ATTEMPTS=2" in said) == (2, True)


def test_python_says_whether_a_run_that_is_done_is_the_one_that_is_asked_for(trial: Trial) -> None:
    assert trial.run(done(trial))[0] == 0
    assert trial.run("exit 2")[0] == 2


def test_the_sites_lines_may_use_what_is_not_set_and_fail(trial: Trial) -> None:
    site = trial.folder / "site.sh"
    site.write_text('false\n: "$NOT_SET"\nexport FROM_SITE=yes\n')
    assert trial.run(f"[[ $FROM_SITE == yes ]] && {done(trial)}", HPCASYNC_SITE=str(site))[0] == 0


@pytest.mark.parametrize(
    ("variables", "words", "says"),
    [
        ({"SLURM_JOB_ID": ""}, (), "this is a batch script: sbatch test.sbatch ..."),
        ({"HPCASYNC_SITE": "/no/site.sh"}, (), "HPCASYNC_SITE=/no/site.sh: there is no such file"),
        ({"HPCASYNC_PYTHON": "no-python"}, (), "HPCASYNC_PYTHON=no-python: there is no such command"),
        ({"HPCASYNC_ATTEMPTS": "0"}, (), "HPCASYNC_ATTEMPTS=0: it must be a number from 1 on"),
        ({"HPCASYNC_ATTEMPTS": "a[$(id)]"}, (), "HPCASYNC_ATTEMPTS=a[$(id)]: it must be a number from 1 on"),
        ({}, ("job.py", "--name", "x"), "--name is the batch script's own"),
        ({}, ("job.py", "--results=x"), "--results=x is the batch script's own"),
    ],
)
def test_mistakes(trial: Trial, variables: dict[str, str], words: tuple[str, ...], says: str) -> None:
    code, said = trial.run("exit 9", *words, **variables)
    assert (code, f"hpcasync: error: {says}" in said) == (2, True)


def test_variables_that_override_are_named(trial: Trial) -> None:
    said = trial.run(done(trial), SBATCH_PARTITION="debug")[1]
    assert "SBATCH_PARTITION=debug was set when this was submitted: it overrides the script's own #SBATCH line" in said


def test_what_a_worker_of_a_sweep_is_told(trial: Trial) -> None:
    line = f'printf "%s\\n" "$@" >{trial.folder}/words'
    assert trial.run(line, "sweep.toml", "job.py", "--target", "1", script=SWEEP)[0] == 0
    assert (trial.folder / "words").read_text().split() == [
        "-m", "hpcasync.cli", "sweep", "--launcher", "mpirun", "--binding", "auto",
        "--results", f"{trial.folder}/results", "--name", "mine", "sweep.toml", "job.py", "--target", "1",
    ]  # fmt: skip


@pytest.mark.parametrize(("code", "ended", "requeued"), [(1, 1, []), (85, 85, ["7"]), (143, 143, [])])
def test_a_worker_that_is_stopped_is_requeued(trial: Trial, code: int, ended: int, requeued: list[str]) -> None:
    assert trial.run(f"{checkpoint(trial, name='mine/trial-0000')}; exit {code}", script=SWEEP)[0] == ended
    assert trial.requeued == requeued
