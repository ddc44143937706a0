"""hpcasync doctor: it runs for real, and every finding that is not ok has a cause here."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcasync import cli
from hpcasync.doctor import cluster, machine, ranks, software, storage
from hpcasync.doctor.finding import Finding, said_bytes, said_seconds
from hpcasync.doctor.main import table

CPUS = {"host": "n1", "affinity": [0]}, {"host": "n1", "affinity": [1]}
ANSWER: dict[str, Any] = {
    "library": "Open MPI v5.0.11",
    "thread_level": 3,
    "tolerated": True,
    "size": 2,
    "hosts": list(CPUS),
    "progress": "thread",
    "node_size": 2,
    "latency_seconds": 1e-5,
    "push_gigabytes_per_second": 8.0,
    "pull_gigabytes_per_second": 9.0,
    "copy_gigabytes_per_second": 10.0,
    "allreduce_seconds": 1e-3,
    "mpi_allreduce_seconds": 2e-3,
    "complete": True,
}
STORAGE = storage.Storage("/results", "nfs", 100 << 30, True, True, True, 0.01, 0.0)
VERDICTS = [
    (machine.cores(2, 2, 4, None), "ok", "each has its own"),
    (machine.cores(2, 2, 4, 4.0), "ok", "each has its own"),
    (machine.cores(4, 1, 2, None), "note", "hpcasync run -n 2"),
    (machine.cores(2, 4, 2, None), "note", "hpcasync run -n 1"),
    (machine.cores(16, 1, 16, 2.5), "problem", "hpcasync run -n 2"),
    (machine.judge_shared_memory(8 << 30, 4 << 30), "ok", "1,074 million float32"),
    (machine.judge_shared_memory(64 << 20, 64 << 20), "problem", "--shm-size=8g"),
    (machine.judge_clock(5e-8, 4e-8, "tsc"), "ok", "tsc: steps of 50 ns"),
    (machine.judge_clock(1e-3, 4e-8, "tsc"), "note", "coarse"),
    (machine.judge_clock(1e-7, 1e-6, "hpet"), "note", "clocksource=tsc"),
    (machine.judge_file_clock(-0.005), "ok", "5 ms behind"),
    (machine.judge_file_clock(2.0), "note", "2 s ahead"),
    (machine.judge_file_clock(-3600.0), "problem", "NTP"),
    (storage.judge_storage(STORAGE), "ok", "nfs, 107 GB free"),
    (
        storage.judge_storage(dataclasses.replace(STORAGE, exclusive=False)),
        "problem",
        "exclusive creation does not work",
    ),
    (storage.judge_storage(dataclasses.replace(STORAGE, replaces=False)), "problem", "rename does not work"),
    (storage.judge_storage(dataclasses.replace(STORAGE, free_bytes=1 << 20)), "problem", "almost full"),
    (storage.judge_storage(dataclasses.replace(STORAGE, free_bytes=2 << 30)), "note", "not much room"),
    (storage.judge_storage(dataclasses.replace(STORAGE, locks=False)), "note", "flock does not work"),
    (storage.judge_storage(dataclasses.replace(STORAGE, sync_seconds=2.0)), "note", "slow to sync"),
    (storage.judge_storage(dataclasses.replace(STORAGE, kind="tmpfs")), "note", "gone when the machine"),
    (software.judge_horovod(None, ""), "note", "make horovod"),
    (software.judge_horovod("0.28.1", "1 1"), "ok", "built with MPI"),
    (software.judge_horovod("0.28.1", "0 1"), "problem", "built without MPI"),
    (software.judge_horovod("0.28.1", "ImportError: no"), "problem", "does not start: ImportError: no"),
    (software.judge_cuda(False), "ok", "no GPU"),
    (software.judge_cuda(True), "note", "does not use it"),
    (cluster.judge_slurm("slurm 22.05.8", "", {}), "ok", "outside of a job"),
    (cluster.judge_slurm("slurm 22.05.8", "", {"job_id": "7", "nodelist": "n[1-2]"}), "ok", "in job 7 on n[1-2]"),
    (cluster.judge_slurm(None, "srun: fatal: no", {}), "note", "knows of no cluster: srun: fatal: no"),
    (cluster.judge_pmi(["pmix", "pmi2"], "Open MPI v5.0.11"), "ok", "--launcher srun-pmix fits"),
    (cluster.judge_pmi(["pmix_v4", "pmi2"], "MPICH 5.0.2"), "ok", "--launcher srun-pmi2 fits"),
    (cluster.judge_pmi(["none"], "MPICH 5.0.2"), "note", "use --launcher mpiexec"),
    (cluster.judge_pmi(["pmi2"], "Open MPI v5.0.11"), "note", "use --launcher mpirun"),
    (cluster.judge_pmi([], ""), "note", "srun --mpi can be nothing"),
    (cluster.judge_variables({"SBATCH_QOS": "x"}), "note", "unset SBATCH_QOS"),
    (ranks.judge_mpi(ANSWER), "ok", "thread level MULTIPLE"),
    (ranks.judge_mpi(ANSWER | {"size": 1}), "problem", "another MPI's than mpi4py's"),
    (ranks.judge_mpi(ANSWER | {"thread_level": 1}), "problem", "grants THREAD_MULTIPLE"),
    (ranks.judge_survival(ANSWER), "ok", "ULFM"),
    (ranks.judge_survival(ANSWER | {"tolerated": False}), "note", "ends the run"),
    (ranks.judge_binding(ANSWER), "ok", "rank 1 on n1, CPUs 1"),
    (ranks.judge_binding(ANSWER | {"hosts": [CPUS[0], {"host": "n2", "affinity": [0]}]}), "ok", "rank 1 on n2, CPUs 0"),
    (ranks.judge_binding(ANSWER | {"hosts": [CPUS[0], CPUS[0]]}), "problem", "both ranks are on CPU 0"),
    (
        ranks.judge_binding(ANSWER | {"hosts": [{"host": "n1", "affinity": list(range(64))}] * 2}),
        "note",
        "0-63 (64): none is bound",
    ),
    (ranks.judge_folder({"shared_folder": True}), "ok", "both nodes see"),
    (ranks.judge_folder({"shared_folder": False}), "problem", "not seen on the other"),
    (ranks.judge_world(ANSWER), "ok", "windows by memory of the node; a progress thread"),
    (ranks.judge_world(ANSWER | {"node_size": 1}), "ok", "messages to an inbox"),
    (ranks.judge_world(ANSWER | {"progress": "none"}), "ok", "no progress thread"),
    (ranks.judge_world(ANSWER | {"progress": "none", "node_size": 1}), "note", "unset HPCASYNC_PROGRESS"),
    (ranks.judge_primitives(ANSWER), "ok", "message 10 µs, allreduce of 4 MiB 1 ms; push 8, pull 9, copy 10 GB/s"),
    (ranks.judge_primitives(ANSWER | {"latency_seconds": 3e-3}), "note", "slow for one node"),
    (ranks.judge_primitives(ANSWER | {"push_gigabytes_per_second": 1.0}), "note", "slow for one node"),
    (ranks.judge_primitives(ANSWER | {"latency_seconds": 3e-3, "node_size": 1}), "ok", "message 3 ms"),
]


@pytest.mark.parametrize(
    ("finding", "verdict", "words"), VERDICTS, ids=[f"{f.name}-{i}" for i, (f, _, _) in enumerate(VERDICTS)]
)
def test_a_judgement(finding: Finding, verdict: str, words: str) -> None:
    assert finding.verdict == verdict
    assert words in f"{finding.told} {finding.advice}"
    assert bool(finding.advice) == (verdict != "ok")
    json.dumps(finding.entry(), allow_nan=False)


def named(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in findings}


def test_what_ranks_that_fail_have_told_is_judged() -> None:
    (dead,) = ranks.judge({}, "ended with exit code 1")
    assert (dead.name, dead.verdict) == ("MPI", "problem")
    assert "ended with exit code 1" in dead.told
    cut = {name: value for name, value in ANSWER.items() if name not in ("allreduce_seconds", "complete")}
    assert named(ranks.judge(cut, "no result within 40 s"))["primitives"] == "problem"
    apart = {"library": "MPICH 5.0.2", "thread_level": 3, "tolerated": False, "size": 1}
    assert named(ranks.judge(apart, "")) == {"MPI": "problem", "survival": "note"}
    assert set(named(ranks.judge(ANSWER | {"shared_folder": True}, ""))) == {
        *("MPI", "survival", "binding", "shared folder", "World", "primitives")
    }


def test_pmi_types_are_read() -> None:
    listed = "MPI plugin types are...\n\tpmix\n\tnone\n\tpmi2\nspecific pmix plugin versions available: pmix_v4\n"
    assert cluster.pmi_types(listed) == ["pmix", "none", "pmi2"]
    assert cluster.pmi_types("srun: MPI types are...\nsrun: none\nsrun: pmi2\n") == ["none", "pmi2"]


@pytest.mark.parametrize(("text", "quota"), [("max 100000", None), ("250000 100000", 2.5), ("nonsense", None)])
def test_the_control_groups_limit(text: str, quota: float | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert machine.cpu_quota(tmp_path / "cpu.max") == quota
    assert machine.cpu_quota(tmp_path / "none") is None


def test_shared_memory_that_is_not_there(tmp_path: Path) -> None:
    assert machine.shared_memory(tmp_path / "none").verdict == "problem"
    assert machine.shared_memory(tmp_path).values["free_bytes"] > 0


def test_a_file_system_is_examined_and_left_as_it_was(tmp_path: Path) -> None:
    found = storage.examine(tmp_path)
    assert (found.exclusive, found.replaces, found.locks) == (True, True, True)
    assert found.free_bytes > 0
    assert abs(found.clock_seconds) < 60
    assert list(tmp_path.iterdir()) == []
    assert storage.existing(tmp_path / "a" / "b") == tmp_path.resolve()


def test_a_folder_that_cannot_be_written() -> None:
    (found,) = storage.storage(Path("/proc/self"))
    assert (found.name, found.verdict) == ("run directory", "problem")
    assert "choose a --results folder" in found.advice


def test_the_file_systems_type_is_that_of_the_innermost_mount() -> None:
    mounts = (
        "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:1 / /scratch rw shared:1 - lustre x rw\n"
        "3 2 0:2 / /scratch/my\\040dir rw - nfs4 y rw\n4 1 0:3 / /scratch2 rw - xfs z rw\n"
    )
    folders = {"/home": "ext4", "/scratch/a": "lustre", "/scratch/my dir/b": "nfs4", "/scratch2": "xfs"}
    assert {folder: storage.kind(Path(folder), mounts) for folder in folders} == folders


def test_figures_are_said_in_the_unit_that_fits() -> None:
    assert [said_bytes(count) for count in (0, 1500, 64e6, 2.5e13)] == ["0 bytes", "1.5 kB", "64 MB", "25 TB"]
    assert [said_seconds(s) for s in (2e-8, 1.5e-5, 0.012, 3)] == ["20 ns", "15 µs", "12 ms", "3 s"]


def look(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SBATCH_", "SLURM_"))}
    env |= {"PYTHONPATH": str(Path(cli.__file__).parents[1])} | variables
    argv = [sys.executable, "-m", "hpcasync.cli", "doctor", *words]
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=100, check=False)


def test_it_looks_at_this_machine(tmp_path: Path) -> None:
    file = tmp_path / "doctor.json"
    told = look("--json", str(file), "-n", "1", cwd=tmp_path)
    findings = {entry["name"]: entry for entry in json.loads(file.read_text())}
    wanted = ["software", "Horovod", "CUDA", "launcher", "MPI", "survival", "binding", "World", "primitives", "Slurm"]
    wanted += ["cores", "shared memory", "clock", "run directory", "wall clock"]
    assert [name for name in findings if name not in ("PMI", "sbatch variables")] == wanted
    problems = [name for name, entry in findings.items() if entry["verdict"] == "problem"]
    assert told.returncode == int(bool(problems))
    assert findings["MPI"]["values"]["size"] == 2
    assert findings["World"]["values"]["node_size"] == 2
    assert all(
        findings["primitives"]["values"][f"{name}_gigabytes_per_second"] > 0 for name in ("push", "pull", "copy")
    )
    assert findings["cores"]["values"]["ranks"] == 1
    assert "\x1b" not in told.stdout
    assert all(line.split()[0] in ("ok", "note", "problem", "→") for line in told.stdout.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["doctor.json"]


def test_a_problem_is_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "bin" / "srun").chmod(0o700)
    told = look("--launcher", "srun-pmix", cwd=tmp_path, PATH=f"{tmp_path}/bin:/usr/bin:/bin", SBATCH_QOS="x")
    assert told.returncode == 1
    assert "two ranks do not start: ended with exit code 7" in told.stdout
    assert "srun is there, and knows of no cluster: no answer" in told.stdout


def test_no_launcher_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    (found,) = ranks.ranks("srun-pmix", None)
    assert (found.name, found.verdict) == ("launcher", "problem")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-n", "0"], "-n 0: it must be 1 or more"),
        (["--threads", "-1"], "--threads -1: it must be 1 or more"),
        (["--json", "."], "--json .: it is a folder"),
        (["--json", "no/where.json"], "there is no folder no"),
        (["--json", __file__], "does not hold a doctor's findings; give another name"),
        (["--launcher", "ssh"], "'ssh'"),
        (["--frobnicate"], "unknown option --frobnicate; the known options are -n --threads --results --launcher"),
        (["here"], "unexpected argument 'here'"),
    ],
)
def test_a_mistake_is_told_on_one_line(
    words: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hpcasync", "doctor", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    told = capsys.readouterr()
    assert (end.value.code, told.out) == (2, "")
    assert told.err.startswith("hpcasync: error: ")
    assert complaint in told.err
    assert told.err.count("\n") == 1


def test_the_table_shows_verdict_name_and_advice() -> None:
    from rich.console import Console

    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(table([Finding("disk", "problem", "full [bold]", "make room")]))
    console.file.close()
    assert console.export_text().split() == ["problem", "disk", "full", "[bold]", "→", "make", "room"]
