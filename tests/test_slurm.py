"""The batch scripts on a real Slurm: four virtual nodes of two CPUs on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcasync.run.checkpoint import describe, latest
from tests import slurm_cluster
from tests.slurm_cluster import HOME, Cluster

pytestmark = [
    pytest.mark.skipif(slurm_cluster.why_not() is not None, reason=str(slurm_cluster.why_not())),
    pytest.mark.alone,
    pytest.mark.timeout(240),
]

TRAIN = HOME / "slurm" / "train.sbatch"
JOB = "tests/batch_job.py"
STEPS = 60
SLOW = ("--steps", str(STEPS), "--first-attempt-seconds", "0.1")
ENDLESS = ("--steps", "10000", "--step-seconds", "0.1")
NARROW = ("--nodes=2", "--ntasks-per-node=1")
# Every node's first CPU is this machine's first: with one CPU each, two ranks on two nodes would share it.
ACROSS = (*NARROW, "--cpus-per-task=2")
MPICH = HOME / ".venv-mpich" / "bin" / "python"


def record(run: Path) -> dict[str, Any]:
    entries: dict[str, Any] = json.loads((run / "run.json").read_text())
    return entries


def statuses(run: Path) -> list[str]:
    return [attempt["status"] for attempt in record(run)["attempts"]]


def launchers() -> dict[str, str]:
    """{launcher: the Python whose MPI it starts}."""
    found = {"mpirun": sys.executable, "srun-pmix": sys.executable}
    return found | {"mpiexec": str(MPICH), "srun-pmi2": str(MPICH)} if MPICH.exists() else found


def test_every_launcher_starts_one_world_across_nodes(cluster: Cluster) -> None:
    """srun does not take over -c by itself; here each rank has the two CPUs and the two threads of its task."""
    jobs = {
        name: cluster.submit(*ACROSS, TRAIN, JOB, "--steps=2", HPCASYNC_LAUNCHER=name, HPCASYNC_PYTHON=python)
        for name, python in launchers().items()
    }
    for name, job in jobs.items():
        assert cluster.end(job)["JobState"] == "COMPLETED", cluster.output(job)
        run = cluster.folder / f"batch_job-{job}"
        entries = record(run)
        assert (run / "DONE").exists()
        assert entries["world"]["size"] == 2
        assert entries["world"]["launcher"] == name.partition("-")[0]
        assert len({host["host"] for host in entries["hosts"]}) == 2
        assert [host["affinity"] for host in entries["hosts"]] == [[0, 1], [0, 1]]
        assert entries["config"]["threads"] == 2
        assert entries["slurm"]["job_id"] == job


def test_a_task_of_an_array_is_stopped_requeued_and_ends_as_if_nothing_had_happened(cluster: Cluster) -> None:
    """Requeueing by the plain id of an array's last task would requeue all of its tasks."""
    array = cluster.submit("--array=0-1", *ACROSS, TRAIN, JOB, *SLOW)
    undisturbed, stopped = (cluster.folder / f"batch_job-{array}_{task}" for task in (0, 1))
    cluster.wait_for_steps(stopped, f"{array}_1")
    cluster.command("scancel", "--batch", "--signal=USR1", f"{array}_1")
    cluster.skip_hold(f"{array}_1")
    for task, restarts in ((0, "0"), (1, "1")):
        entries = cluster.end(f"{array}_{task}")
        assert (entries["JobState"], entries["Restarts"]) == ("COMPLETED", restarts), cluster.output(f"{array}_{task}")
    assert f"requeues job {array}_1\n" in cluster.output(f"{array}_1")
    first, second = record(stopped)["attempts"]
    assert (first["status"], second["status"]) == ("interrupted", "done")
    assert (stopped / "ckpt" / str(second["step"])).is_dir()
    assert 3 <= second["step"] < STEPS
    assert second["slurm"]["restart_count"] == "1"
    assert (undisturbed / "parameters.json").read_text() == (stopped / "parameters.json").read_text()


def test_scancel_leaves_a_checkpoint_and_stays_cancelled(cluster: Cluster) -> None:
    """Slurm sends SIGTERM to the script, the launcher, its daemons and the ranks all at once."""
    jobs = {
        name: cluster.submit(*NARROW, TRAIN, JOB, *ENDLESS, HPCASYNC_LAUNCHER=name, HPCASYNC_PYTHON=python)
        for name, python in launchers().items()
    }
    for job in jobs.values():
        cluster.wait_for_steps(cluster.folder / f"batch_job-{job}", job)
    cluster.command("scancel", *jobs.values())
    for name, job in jobs.items():
        run = cluster.folder / f"batch_job-{job}"
        cluster.wait(lambda job=job: cluster.command("squeue", "-h", "-j", job) == "", f"{job} to leave the queue", job)
        entries = cluster.show(job)
        assert (entries["JobState"], entries["Restarts"]) == ("CANCELLED", "0"), (name, cluster.output(job))
        assert statuses(run) == ["interrupted"], (name, cluster.output(job))
        assert list((run / "ckpt").iterdir()), (name, cluster.output(job))


def test_an_urgent_job_preempts_and_the_run_goes_on_after_it(cluster: Cluster) -> None:
    """Slurm sends the ranks SIGTERM at the start of the grace time, and the script nothing until its end."""
    job = cluster.submit(*ACROSS, TRAIN, JOB, *SLOW)
    run = cluster.folder / f"batch_job-{job}"
    cluster.wait_for_steps(run, job)
    urgent = cluster.submit("--partition=urgent", f"--nodes={slurm_cluster.NODES}", "--exclusive", "--wrap=true")
    assert cluster.end(urgent)["JobState"] == "COMPLETED"
    cluster.skip_hold(job)
    assert cluster.end(job)["JobState"] == "COMPLETED", cluster.output(job)
    assert statuses(run) == ["interrupted", "done"]
    assert f"requeues job {job}\n" in cluster.output(job)


def test_a_job_whose_node_fails_goes_on_from_its_last_checkpoint_by_itself(cluster: Cluster) -> None:
    job = cluster.submit(*ACROSS, TRAIN, JOB, *SLOW, "--checkpoint-every", "0.5")
    run = cluster.folder / f"batch_job-{job}"
    cluster.wait(lambda: latest(run) is not None, "a checkpoint", job)
    saved = describe(latest(run) or run)[0]
    last = cluster.command("scontrol", "show", "hostnames", cluster.show(job)["NodeList"]).split()[-1]
    cluster.command("scontrol", "update", f"NodeName={last}", "State=DOWN", "Reason=test")
    try:
        cluster.skip_hold(job)
        entries = cluster.end(job)
    finally:
        cluster.bring_back(last)
    assert (entries["JobState"], entries["Restarts"]) == ("COMPLETED", "1"), cluster.output(job)
    assert (run / "DONE").exists()
    second = record(run)["attempts"][1]
    assert saved <= second["step"] < STEPS
    steps = [json.loads(line) for line in (run / "metrics.rank0.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == list(range(1, STEPS + 1))


def test_a_sweep_with_a_bad_trial_and_the_reports_after_it(cluster: Cluster) -> None:
    searched = cluster.folder / "searched.toml"
    searched.write_text("[search]\nlr = [0.1, -1]\n")
    sweep = cluster.submit(
        "--array=0-1", "--ntasks-per-node=1", HOME / "slurm" / "sweep.sbatch", searched, JOB, "--steps=2"
    )
    results = cluster.folder / f"sweep-{sweep}"
    report = HOME / "slurm" / "report.sbatch"
    if_well = cluster.submit(f"--dependency=afterok:{sweep}", "--kill-on-invalid-dep=yes", report, results)
    anyway = cluster.submit(f"--dependency=afterany:{sweep}", report, results)
    states = [cluster.end(f"{sweep}_{task}")["JobState"] for task in range(2)]
    outputs = "".join(cluster.output(f"{sweep}_{task}") for task in range(2))
    assert sorted(states) == ["COMPLETED", "FAILED"], outputs
    assert "--lr -1.0: it must be a positive number" in outputs
    assert len([run for run in results.glob("trial-*") if (run / "DONE").exists()]) == 1
    assert cluster.end(if_well)["JobState"] == "CANCELLED"
    assert cluster.end(anyway)["JobState"] == "COMPLETED", cluster.output(anyway)
    assert (results / "report.html").exists()


def test_a_worker_that_is_requeued_goes_on_with_its_trial(cluster: Cluster) -> None:
    searched = cluster.folder / "searched.toml"
    searched.write_text("[search]\nlr = [0.1]\n")
    job = cluster.submit("--array=0", *ACROSS, HOME / "slurm" / "sweep.sbatch", searched, JOB, *SLOW)
    run = cluster.folder / f"sweep-{job}" / "trial-0000"
    cluster.wait_for_steps(run, f"{job}_0")
    known = cluster.folder / "status.json"
    cluster.command(sys.executable, "-m", "hpcasync.cli", "status", run, "--json", known)
    (entry,) = json.loads(known.read_text())
    assert (entry["state"], entry["slurm"]["state"]) == ("running", "RUNNING")
    cluster.command("scancel", "--batch", "--signal=USR1", f"{job}_0")
    cluster.skip_hold(f"{job}_0")
    assert cluster.end(f"{job}_0")["JobState"] == "COMPLETED", cluster.output(f"{job}_0")
    assert statuses(run) == ["interrupted", "done"]
    assert [path.name for path in run.parent.glob("trial-*")] == ["trial-0000"]
    assert "| done |" in (run.parent / "table.md").read_text()


def test_a_bench_interleaves_strategies_and_gives_each_repetition_a_seed(cluster: Cluster) -> None:
    job = cluster.submit(
        "--array=1", "--ntasks-per-node=1", HOME / "slurm" / "bench.sbatch", JOB, "--steps=2",
        HPCASYNC_STRATEGIES="sync; stale bound=2", HPCASYNC_REPETITIONS="1", HPCASYNC_LAUNCHER="srun-pmix",
    )  # fmt: skip
    assert cluster.end(f"{job}_1")["JobState"] == "COMPLETED", cluster.output(f"{job}_1")
    results = cluster.folder / f"bench-{job}"
    started = {name: record(results / name)["started"] for name in ("stale_bound=2-1", "sync-1")}
    assert started["stale_bound=2-1"] < started["sync-1"]  # every repetition begins with the next strategy
    assert [record(results / name)["seed"] for name in started] == [1, 1]


def test_a_heterogeneous_job_is_one_world(cluster: Cluster) -> None:
    job = cluster.submit(
        "--ntasks=1", "--cpus-per-task=2", ":", "--ntasks=2", HOME / "slurm" / "hetero.sbatch", JOB, "--steps=2"
    )
    assert cluster.end(job)["JobState"] == "COMPLETED", cluster.output(job)
    entries = record(cluster.folder / f"batch_job-{job}")
    assert entries["world"]["size"] == 3
    assert [len(host["affinity"]) for host in entries["hosts"]] == [2, 1, 1]
    assert entries["config"]["threads"] == 2


def test_a_wrong_pmi_is_said_once_and_a_variable_that_overrides_is_named(cluster: Cluster) -> None:
    job = cluster.submit(*ACROSS, TRAIN, JOB, "--steps=2", HPCASYNC_LAUNCHER="srun-pmi2", SBATCH_TIMELIMIT="7")
    assert cluster.end(job)["JobState"] == "FAILED"
    said = [line for line in cluster.output(job).splitlines() if line.startswith("hpcasync: error: ")]
    assert len(said) == 1, cluster.output(job)
    assert said[0].startswith("hpcasync: error: 2 ranks were started, but MPI sees 1: ")
    assert "SBATCH_TIMELIMIT=7 was set" in cluster.output(job)
    assert not (cluster.folder / f"batch_job-{job}").exists()


def test_a_time_limit_that_leaves_no_time_for_a_step_ends_the_first_attempt(cluster: Cluster) -> None:
    """Slurm sends the signal that is due 120 s before the end within half a minute."""
    job = cluster.submit(*ACROSS, "--time=1", TRAIN, "tests/deaf_job.py")
    entries = cluster.end(job)
    assert (entries["JobState"], entries["Restarts"]) == ("FAILED", "0"), cluster.output(job)
    assert "no step was kept in this attempt: a longer time limit is needed\n" in cluster.output(job)


def test_a_run_that_is_done_is_not_taken_for_one_with_other_options(cluster: Cluster) -> None:
    def submit(strategy: str) -> str:
        return cluster.submit("--ntasks=1", TRAIN, JOB, "--steps=2", "--strategy", strategy, HPCASYNC_NAME="once")

    assert cluster.end(submit("sync"))["JobState"] == "COMPLETED"
    again, other = submit("sync"), submit("eager")
    assert cluster.end(again)["JobState"] == "COMPLETED", cluster.output(again)
    assert f"{cluster.folder / 'once'} is done: nothing to do\n" in cluster.output(again)
    entries = cluster.end(other)
    assert (entries["JobState"], entries["ExitCode"]) == ("FAILED", "2:0"), cluster.output(other)
    assert "once was begun with --strategy ['sync'], not ['eager']" in cluster.output(other)


def test_a_job_is_started_no_more_often_than_was_said(cluster: Cluster) -> None:
    """Without --batch the signal reaches the ranks on other nodes, their launcher's daemons, and not the script."""
    job = cluster.submit(*ACROSS, TRAIN, JOB, *ENDLESS, HPCASYNC_ATTEMPTS="1")
    run = cluster.folder / f"batch_job-{job}"
    cluster.wait_for_steps(run, job)
    cluster.command("scancel", "--signal=USR1", job)
    assert cluster.end(job)["JobState"] == "FAILED"
    assert "is not requeued: this was attempt 1" in cluster.output(job)
    assert statuses(run) == ["interrupted"]
    assert list((run / "ckpt").iterdir())
