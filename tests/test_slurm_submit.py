"""hpcasync submit on a real Slurm: four virtual nodes of two CPUs on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import slurm_cluster
from tests.slurm_cluster import HOME, Cluster

pytestmark = [
    pytest.mark.skipif(slurm_cluster.why_not() is not None, reason=str(slurm_cluster.why_not())),
    pytest.mark.alone,
    pytest.mark.timeout(240),
]

JOB = str(HOME / "tests" / "tiny_job.py")


def hpcasync(cluster: Cluster, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hpcasync.cli", *words],
        cwd=cluster.folder,
        env=cluster.env | {"PYTHONPATH": str(HOME)} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_job_is_submitted_and_no_word_of_it_is_more_than_a_word(cluster: Cluster) -> None:
    nasty = "$(touch owned) `touch owned`\n#SBATCH --comment=owned\n'; touch owned; \"\\é"
    words = ["--steps", "3", "--seconds", "60", "--data", nasty]
    before = {path.name for path in cluster.folder.iterdir()}
    told = hpcasync(
        cluster,
        "submit",
        "--nodes=2",
        "--tasks=2",
        "--time=30",
        "--results=my runs",
        JOB,
        *words,
        SBATCH_TIMELIMIT="7",
    )
    assert (
        told.stderr
        == "hpcasync: note: SBATCH_TIMELIMIT=7 is set: it overrides --time=30 (unset SBATCH_TIMELIMIT to prevent it)\n"
    )
    first, second, third = told.stdout.splitlines()
    job = first.removeprefix("job ")
    output, run = Path(second.removeprefix("output: ")), Path(third.removeprefix("run: "))
    assert cluster.end(job)["JobState"] == "COMPLETED", output.read_text()
    assert cluster.show(job)["TimeLimit"] == "00:07:00"
    assert "Comment" not in cluster.show(job)
    assert (run / "DONE").exists()
    assert f"done: {run}" in output.read_text()
    record = json.loads((run / "run.json").read_text())
    assert record["world"]["size"] == 4
    assert record["argv"][-len(words) :] == words
    assert {path.name for path in cluster.folder.iterdir()} - before == {"my runs", output.name}


def test_a_site_file_and_an_array_by_srun(cluster: Cluster) -> None:
    site = cluster.folder / "site.toml"
    site.write_text(
        'launcher = "srun-pmix"\nbinding = "none"\nsbatch_flags = ["--comment=from-site"]\n'
        'prologue = ["export OMPI_MCA_mpi_yield_when_idle=1", "echo prologue $HPCASYNC_LAUNCHER", "false"]\n'
        "[defaults]\ntasks = 2\n"
    )
    told = hpcasync(cluster, "submit", "--site=site.toml", "--array=5-7:4%2", "--job-name=many", JOB, "--steps", "2")
    job = told.stdout.splitlines()[0].removeprefix("job ")
    ended = cluster.end(f"{job}_5")
    output = (cluster.folder / f"many-{job}_5.out").read_text()
    assert (ended["JobState"], ended["Comment"]) == ("COMPLETED", "from-site"), output
    assert "prologue srun-pmix\n" in output
    record = json.loads((cluster.folder / "results" / f"tiny_job-{job}_5" / "run.json").read_text())
    assert (record["seed"], record["world"]["size"], record["world"]["launcher"]) == (5, 2, "srun")


def test_a_module_that_is_not_there_ends_the_job(cluster: Cluster) -> None:
    (cluster.folder / "modules.toml").write_text('modules = ["nowhere/1.0"]\n')
    told = hpcasync(cluster, "submit", "--site=modules.toml", "--tasks=1", "--job-name=modular", JOB)
    job = told.stdout.splitlines()[0].removeprefix("job ")
    assert cluster.end(job)["JobState"] == "FAILED"
    assert "hpcasync: error: no module nowhere/1.0\n" in (cluster.folder / f"modular-{job}.out").read_text()


def test_what_sbatch_says_without_submitting(cluster: Cluster) -> None:
    told = hpcasync(cluster, "submit", "--nodes=2", "--tasks=2", "--test-only", JOB)
    assert told.returncode == 0
    assert "to start at" in told.stdout
    assert "using 4 processors" in told.stdout
    told = hpcasync(cluster, "submit", "--tasks=2", "--partition=nowhere", JOB)
    assert told.returncode == 2
    assert told.stderr.startswith("hpcasync: error: sbatch: invalid partition specified: nowhere")
    assert told.stderr.count("\n") == 1


def test_a_dependency_that_cannot_be_met_ends_the_job(cluster: Cluster) -> None:
    fails = cluster.command("sbatch", "--parsable", "--output=/dev/null", "--wrap=false").strip()
    told = hpcasync(cluster, "submit", "--tasks=1", f"--afterok={fails}", JOB)
    job = told.stdout.splitlines()[0].removeprefix("job ")
    assert cluster.end(job)["JobState"] == "CANCELLED"


def test_the_doctor_looks_at_two_nodes(cluster: Cluster) -> None:
    file = cluster.folder / "doctor.json"
    look = [sys.executable, "-m", "hpcasync.cli", "doctor", "--results", str(cluster.folder), "--json", str(file)]
    cluster.command("salloc", "--nodes=2", "--ntasks-per-node=1", *look, PYTHONPATH=str(HOME))
    findings = {entry["name"]: entry for entry in json.loads(file.read_text())}
    assert findings["Slurm"]["values"]["job"]["nodelist"] == "n[1-2]"
    assert "pmi2" in findings["PMI"]["values"]["types"]
    assert findings["shared folder"]["verdict"] == "ok"
    assert findings["World"]["told"] == "windows by messages to an inbox; a progress thread"
    assert len({host for host, _ in findings["binding"]["values"]["affinity"]}) == 2


def test_the_doctor_finds_a_launcher_of_another_kind(cluster: Cluster) -> None:
    file = cluster.folder / "wrong.json"
    look = [sys.executable, "-m", "hpcasync.cli", "doctor", "--launcher=srun-pmi2", "--json", str(file)]
    words = ["salloc", "--ntasks=2", *look]
    told = subprocess.run(
        words, cwd=cluster.folder, env=cluster.env | {"PYTHONPATH": str(HOME)}, timeout=100, check=False
    )
    assert told.returncode == 1
    findings = {entry["name"]: entry for entry in json.loads(file.read_text())}
    assert findings["MPI"]["values"]["size"] == 1
    assert findings["MPI"]["verdict"] == "problem"
