"""hpcasync submit: its script's text, mistakes on its command line, and what sbatch answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcasync.launch.slurm import overrides
from hpcasync.launch.slurm.request import Request
from hpcasync.launch.slurm.script import PACKAGE
from hpcasync.launch.slurm.site import Site
from tests.submitted import JOB, call, dry_run, flags, refusal, written


def test_the_whole_script() -> None:
    request = Request(nodes=4, tasks=32, time="2:00:00", partition="cpu", afterok="20:21", singleton=True, job_name="a")
    site = Site(
        "srun-pmix", ("gcc/12.3",), ("export A='b c'",), ("--exclusive", "--hint=nomultithread"), binding="none"
    )
    assert (
        written(request, site, ["jobs/a b.py", "--lr", "0.1", "it's"])
        == f"""#!/usr/bin/env bash
#SBATCH --job-name=a
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=32
#SBATCH --cpus-per-task=1
#SBATCH --time=2:00:00
#SBATCH --partition=cpu
#SBATCH --dependency=afterok:20:21,singleton
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --requeue
#SBATCH --output=a-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --exclusive
#SBATCH --hint=nomultithread
# Written by: hpcasync submit
set -Eeuo pipefail
HPCASYNC_HOME={PACKAGE.parent}
HPCASYNC_PYTHON=/opt/python
HPCASYNC_LAUNCHER=srun-pmix
HPCASYNC_BINDING=none
HPCASYNC_RESULTS=results
HPCASYNC_NAME=''
HPCASYNC_ATTEMPTS=20
. {PACKAGE}/launch/batch.sh
batch_site() {{
  set +Eeu # the site's lines are not ours
  module load gcc/12.3 || batch_fail 'no module gcc/12.3'
  export A='b c'
  set -Eeu
}}
batch_begin
batch_run "$(batch_name a_b)" 'jobs/a b.py' --lr 0.1 'it'"'"'s' || true
batch_end
"""
    )


def test_an_array_seeds_each_run_with_its_index() -> None:
    text = dry_run("--array=0-3%2", JOB)
    assert "--output=tiny_job-%A_%a.out" in flags(text)
    assert f'"$(batch_name tiny_job)" {JOB} --seed "$SLURM_ARRAY_TASK_ID" || true' in text


def test_without_requeue_there_is_one_attempt() -> None:
    text = dry_run("--no-requeue", JOB)
    assert "--no-requeue" in flags(text)
    assert "--requeue" not in flags(text)
    assert "HPCASYNC_ATTEMPTS=1\n" in text


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--tasks=2"], "no job file"),
        (["--tasks=2", "missing.py"], "'missing.py': there is no such job file"),
        ([JOB], "--tasks: how many ranks on every node"),
        (["--tasks=x", JOB], "--tasks x: it must be a whole number"),
        (["--tasks=2", "--attempts=0", JOB], "--attempts 0: it must be 1 or more"),
        (["--tasks=2", "--frobnicate", JOB], "unknown option --frobnicate; the known options are --nodes --tasks"),
        (["--tasks=2", "--name=a/b", JOB], "--name 'a/b': it must be letters"),
        (["--tasks=2", "--name=a", "--array=0-3", JOB], "--name a: an array makes a run per index"),
        (["--tasks=2", "--results=-x", JOB], "'-x': it looks like an option; write ./-x"),
        (["--tasks=2", JOB, "--name", "a"], "'--name' after the job: `hpcasync submit --name`"),
        (["--tasks=2", JOB, "--results=a"], "'--results=a' after the job: `hpcasync submit --results`"),
        (["--tasks=2", JOB, "--help"], "'--help' after the job: `hpcasync run JOB.py --help` shows"),
        (["--tasks=2", JOB, "--resume"], "'--resume' after the job: a submitted run"),
        (["--tasks=2", "--array=1", JOB, "--seed=3"], "'--seed=3' after the job: in an array"),
        (["--tasks=2", JOB, "a", ":", "b"], "':' as a word of its own begins another program"),
        (["--tasks=2", "--site=missing.toml", JOB], "--site 'missing.toml': it cannot be read"),
    ],
)
def test_a_mistake_is_told_on_one_line(words: list[str], complaint: str) -> None:
    assert complaint in refusal(*words)


def test_no_launcher_is_given_a_colon() -> None:
    code, _, err = call("run", "--dry-run", JOB, ":", "id")
    assert code == 2
    assert "begins another program" in err


def test_variables_that_sbatch_obeys_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"SBATCH_TIMELIMIT": "5", "SBATCH_QOS": "a\nb", "SBATCH_NO_REQUEUE": "", "SBATCH_ARRAY_INX": "1"}
    assert overrides.sbatch_variables({**variables, "SLURM_JOB_ID": "1", "SBATCH_COMMENT": "not read"}) == variables
    assert overrides.told(variables, ["--time=1:00", "--requeue", "--nodes=1"]) == [
        "SBATCH_TIMELIMIT=5 is set: it overrides --time=1:00 (unset SBATCH_TIMELIMIT to prevent it)",
        "SBATCH_QOS=$'a\\x0ab' is set: it adds --qos (unset SBATCH_QOS to prevent it)",
        "SBATCH_NO_REQUEUE='' is set: it overrides --requeue (unset SBATCH_NO_REQUEUE to prevent it)",
        "SBATCH_ARRAY_INX=1 is set: it adds --array (unset SBATCH_ARRAY_INX to prevent it)",
    ]
    monkeypatch.setenv("SBATCH_PARTITION", "urgent")
    code, _, err = call("submit", "--dry-run", "--tasks=1", "--partition=debug", JOB)
    assert code == 0
    assert err.startswith("hpcasync: note: SBATCH_PARTITION=urgent is set: it overrides --partition=debug")


def fake_sbatch(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sbatch").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "sbatch").chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_job_and_where_its_output_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sbatch(tmp_path, f"cat > {tmp_path}/got; echo greeting; echo '12;other'; echo warning >&2", monkeypatch)
    monkeypatch.chdir(tmp_path)
    code, out, err = call("submit", "--tasks=2", JOB, "--data", "é")
    assert err == "warning\n"
    assert (code, out) == (0, f"job 12\noutput: {tmp_path}/tiny_job-12.out\nrun: {tmp_path}/results/tiny_job-12\n")
    assert (tmp_path / "got").read_text() + "\n" == dry_run(JOB, "--data", "é").replace("--dry-run ", "").rpartition(
        "sbatch"
    )[0]
    _, out, _ = call("submit", "--tasks=2", "--array=1-2", "--job-name=a", JOB)
    assert out == f"job 12\noutput: {tmp_path}/a-12_<index>.out\nrun: {tmp_path}/results/tiny_job-12_<index>\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "echo 'sbatch: error: invalid partition specified: x' >&2; echo 'sbatch: error: failed' >&2; exit 1",
            "sbatch: invalid partition specified: x; failed",
        ),
        ("exit 3", "sbatch: exit code 3"),
    ],
)
def test_what_sbatch_refuses(text: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sbatch(tmp_path, text, monkeypatch)
    code, out, err = call("submit", "--tasks=2", script_without_main(tmp_path))
    assert (code, out, err) == (2, "", f"hpcasync: error: {complaint}\n")


def test_without_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = call("submit", "--tasks=2", script_without_main(tmp_path))
    assert code == 2
    assert "no sbatch found" in err


def script_without_main(folder: Path) -> str:
    """A job that is not asked for its options."""
    (folder / "job.py").touch()
    return str(folder / "job.py")


def test_options_that_the_job_refuses_are_not_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sbatch(tmp_path, f"touch {tmp_path}/queued; echo 12", monkeypatch)
    told = call("submit", "--tasks=2", JOB, "--strategy", "egaer")
    assert told == (2, "", "hpcasync: error: unknown strategy 'egaer'; did you mean eager?\n")
    assert not (tmp_path / "queued").exists()


def test_a_job_that_lacks_a_module_here_is_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The site's script may load it on the nodes."""
    fake_sbatch(tmp_path, "echo 12", monkeypatch)
    (tmp_path / "job.py").write_text("import a_module_of_the_cluster\nfrom hpcasync.run import main\n")
    code, out, err = call("submit", "--tasks=2", str(tmp_path / "job.py"))
    assert (code, err) == (0, "")
    assert out.startswith("job 12\n")
