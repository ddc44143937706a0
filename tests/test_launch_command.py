"""The launcher's command line, and what the environment says about machines, launchers and Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcasync.errors import UsageError
from hpcasync.launch import Launcher, command, environment, heterogeneous


def built(family: str, ranks: int, threads: int, cores: int, root: bool = False, **options: Any) -> str:
    launcher = Launcher(Path("/opt/bin/mpirun"), family)  # type: ignore[arg-type]
    program = ["python", "job.py", "--lr", "0.1"]
    return " ".join(
        command(
            launcher, program, ranks=ranks, threads=threads, cores=cores, root=root, environment={"A": "b c"}, **options
        )
    )


@pytest.mark.parametrize("family", ["Open MPI", "MPICH", "Slurm"])
def test_binding_can_be_chosen(family: str) -> None:
    fitting, crowded = {"ranks": 2, "threads": 1, "cores": 2}, {"ranks": 4, "threads": 1, "cores": 2}
    unbound, bound = built(family, **crowded), built(family, **fitting)
    assert built(family, **fitting, binding="auto") == bound
    assert built(family, **fitting, binding="none") == unbound.replace("-n 4", "-n 2")
    assert built(family, **crowded, binding="core") == bound.replace("-n 2", "-n 4")


def test_open_mpi_binds_ranks_that_fit() -> None:
    assert built("Open MPI", ranks=2, threads=2, cores=4) == (
        "/opt/bin/mpirun --oversubscribe -n 2 --mca osc ^ucx --map-by slot:PE=2 --bind-to core "
        "-x OMP_NUM_THREADS=2 -x A=b c python job.py --lr 0.1"
    )


def test_open_mpi_yields_when_ranks_outnumber_cores() -> None:
    assert built("Open MPI", ranks=4, threads=1, cores=2, root=True) == (
        "/opt/bin/mpirun --oversubscribe --allow-run-as-root -n 4 --mca osc ^ucx --bind-to none "
        "--mca mpi_yield_when_idle 1 -x OMP_NUM_THREADS=1 -x A=b c python job.py --lr 0.1"
    )


def test_one_rank_per_node_is_bound_nowhere() -> None:
    for family, words in (("Open MPI", "--map-by ppr:1:node"), ("MPICH", "-ppn 1")):
        launcher = Launcher(Path("/opt/bin/mpirun"), family)  # type: ignore[arg-type]
        line = command(launcher, ["job"], ranks=2, threads=1, cores=2, root=False, environment={}, apart=True)
        assert words in " ".join(line)
        assert "core" not in " ".join(line)


def test_mpich_binds_ranks_that_fit() -> None:
    assert built("MPICH", ranks=2, threads=1, cores=2, root=True) == (
        "/opt/bin/mpirun -n 2 -bind-to core:1 -genv OMP_NUM_THREADS 1 -genv A b c python job.py --lr 0.1"
    )


def test_mpich_yields_when_ranks_outnumber_cores() -> None:
    assert built("MPICH", ranks=3, threads=1, cores=2) == (
        "/opt/bin/mpirun -n 3 -bind-to none -genv MPIR_CVAR_ENABLE_HEAVY_YIELD 1 "
        "-genv OMP_NUM_THREADS 1 -genv A b c python job.py --lr 0.1"
    )


DEAF = [sys.executable, "-ES", str(Path(environment.__file__).with_name("deaf.py"))]
GUARD = [sys.executable, "-ES", str(Path(environment.__file__).with_name("guard.py"))]
SRUN_PMIX = Launcher(Path("/opt/bin/srun"), "Slurm", "pmix")


def test_in_an_allocation_signals_do_not_reach_open_mpis_daemons() -> None:
    launcher = Launcher(Path("/opt/bin/mpirun"), "Open MPI")
    words = command(
        launcher,
        ["python", "job.py"],
        ranks=4,
        threads=1,
        cores=2,
        root=False,
        environment={},
        survivable=True,
        nodes=2,
    )
    assert words == [
        *DEAF, "TERM", "/opt/bin/mpirun", "--with-ft", "ulfm",
        "--prtemca", "prte_launch_agent", " ".join([*DEAF, "TERM,USR1", "prted"]),
        "-n", "4", "--mca", "osc", "^ucx", "--map-by", "slot:PE=1", "--bind-to", "core",
        "-x", "OMP_NUM_THREADS=1", *GUARD, "python", "job.py",
    ]  # fmt: skip


def test_srun_is_told_what_it_does_not_inherit() -> None:
    words = command(
        SRUN_PMIX, ["python", "job.py"], ranks=4, threads=3, cores=6, root=True, environment={"A": "b"}, nodes=2
    )
    assert words == [
        *DEAF, "TERM", "/opt/bin/srun", "--mpi=pmix", "--cpu-bind=cores", "--kill-on-bad-exit=1", "-n", "4", "-c", "3",
        "--export=ALL,OMP_NUM_THREADS=3,A=b,PMIX_MCA_psec=native", "python", "job.py",
    ]  # fmt: skip


def test_a_heterogeneous_job_has_threads_by_group() -> None:
    groups = [environment.Group(1, 1, 4), environment.Group(2, 6, 1)]
    words = heterogeneous(Launcher(Path("srun"), "Slurm", "pmi2"), ["python", "job.py", "--lr=1"], groups, {})
    common = ["--mpi=pmi2", "--cpu-bind=cores", "--kill-on-bad-exit=1"]
    assert words == [
        *DEAF, "TERM", "srun",
        "--het-group=0", *common, "-n", "1", "-c", "4", "--export=ALL,OMP_NUM_THREADS=4",
        "python", "job.py", "--threads", "4", "--lr=1", ":",
        "--het-group=1", *common, "-n", "6", "-c", "1", "--export=ALL,OMP_NUM_THREADS=1",
        "python", "job.py", "--threads", "1", "--lr=1",
    ]  # fmt: skip


def test_mpirun_is_refused_in_a_heterogeneous_job() -> None:
    groups = [environment.Group(1, 1, 4), environment.Group(2, 6, 1)]
    with pytest.raises(UsageError, match="mpirun sees only the first group"):
        heterogeneous(Launcher(Path("/opt/bin/mpirun"), "Open MPI"), ["python", "job.py"], groups, {})


def test_a_signal_that_deaf_blocks_does_not_end_the_command() -> None:
    code = "import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGUSR1)"
    assert subprocess.run([*DEAF, "TERM,USR1", sys.executable, "-c", code], check=False).returncode == 0
    assert subprocess.run([*DEAF, "TERM", sys.executable, "-c", code], check=False).returncode == -signal.SIGUSR1


def test_cores_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_siblings", lambda cpu: {0: "0,2", 2: "0,2", 1: "1"}[cpu])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert environment.cores() == 2


def test_the_environment_is_kept_by_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("OMPI_MCA_osc", "^ucx")
    monkeypatch.setenv("OMPI_MCA_initial_wdir", "/home/me")
    kept = environment.variables()
    assert kept["OMP_NUM_THREADS"] == "3"
    assert kept["OMPI_MCA_osc"] == "^ucx"
    assert not {"MY_TOKEN", "OMPI_MCA_initial_wdir"} & kept.keys()


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4", "SLURM_STEP_ID": "0", "PMIX_RANK": "0"}, "mpirun"),
        ({"MPI_LOCALRANKID": "0", "PMI_FD": "5", "PMI_RANK": "0", "SLURM_STEP_ID": "0"}, "mpiexec"),
        ({"PMI_FD": "5", "PMI_RANK": "0", "SLURM_STEP_ID": "0"}, "srun"),
        ({"SLURM_STEP_ID": "0", "PMIX_RANK": "0"}, "srun"),
        ({"SLURM_JOB_ID": "7"}, None),
    ],
)
def test_who_has_launched(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], launcher: str | None) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "MPI_LOCALRANKID", "PMI_FD", "PMI_RANK", "PMIX_RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment.launched_by() == launcher


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "PMI", "MPI_")):
            monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_slurm")
def test_what_slurm_has_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.allocation() == ()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert environment.allocation() == (environment.Group(1, 1, 1),)
    for name, value in {"JOB_NUM_NODES": "2", "NTASKS": "8", "CPUS_PER_TASK": "3"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert environment.allocation() == (environment.Group(2, 8, 3),)
    monkeypatch.setenv("SLURM_HET_SIZE", "2")
    monkeypatch.setenv("SLURM_NTASKS_HET_GROUP_1", "5")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES_HET_GROUP_1", "2")
    assert environment.allocation() == (environment.Group(1, 1, 1), environment.Group(2, 5, 1))
    monkeypatch.setenv("MPI_LOCALRANKID", "0")
    assert environment.allocation() == ()


@pytest.mark.usefixtures("no_slurm")
def test_sruns_tasks_are_not_those_of_mpiruns_daemons(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.srun_tasks() is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    assert environment.srun_tasks() == 3
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "6")
    assert environment.srun_tasks() is None


def test_slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    kept = environment.slurm()
    assert (kept["job_id"], kept["restart_count"]) == ("7", "1")
