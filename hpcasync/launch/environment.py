"""What the environment tells a rank, and what of it is worth keeping with a run's results."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Set by `hpcasync run` for the ranks it starts.
RANKS = "HPCASYNC_RANKS"

CHECK = "HPCASYNC_CHECK"  # set for a process that only reads a job's options

# An allow-list: the rest of the environment may hold secrets.
_KEPT = (
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)
_KEPT_PREFIXES = ("OMPI_MCA_", "PRTE_MCA_", "PMIX_MCA_", "MPIR_CVAR_", "UCX_", "FI_", "HOROVOD_")
_UCX_SIGNAL = "UCX_DEBUG_SIGNO"  # upon which UCX, below either MPI, begins to print what it does: SIGHUP by default
# Open MPI's launcher sets these for every rank, and we the last; nobody has chosen them.
_NOISE = {*(f"OMPI_MCA_{name}" for name in ("PREFIXES", "cpu_type", "initial_wdir", "num_procs")), _UCX_SIGNAL}
_SLURM = {
    "job_id": "SLURM_JOB_ID",
    "array_job_id": "SLURM_ARRAY_JOB_ID",
    "array_task_id": "SLURM_ARRAY_TASK_ID",
    "restart_count": "SLURM_RESTART_COUNT",
    "nodelist": "SLURM_JOB_NODELIST",
    "partition": "SLURM_JOB_PARTITION",
}


def variables() -> dict[str, str]:
    """The variables on the allow-list that are set."""
    chosen = (k for k in sorted(os.environ) if k not in _NOISE)
    kept = (k for k in chosen if k in _KEPT or k.startswith(_KEPT_PREFIXES))
    return {name: os.environ[name] for name in kept}


def slurm() -> dict[str, str]:
    """The Slurm job around this process; empty outside of one."""
    return {name: os.environ[variable] for name, variable in _SLURM.items() if variable in os.environ}


@dataclass(frozen=True)
class Group:
    """Tasks of one size that Slurm has room for: a job has one such group, a heterogeneous job several."""

    nodes: int
    tasks: int
    cpus_per_task: int


def allocation() -> tuple[Group, ...]:
    """What Slurm has given to the batch script or shell around this process; empty outside of one, and in a rank."""
    if "SLURM_JOB_ID" not in os.environ or launched_by() is not None:
        return ()
    if "SLURM_HET_SIZE" not in os.environ:
        return (_group(""),)
    return tuple(_group(f"_HET_GROUP_{index}") for index in range(int(os.environ["SLURM_HET_SIZE"])))


def _group(suffix: str) -> Group:
    nodes, tasks, cpus = (
        os.environ.get(f"SLURM_{name}{suffix}") for name in ("JOB_NUM_NODES", "NTASKS", "CPUS_PER_TASK")
    )
    return Group(int(nodes or 1), int(tasks or nodes or 1), int(cpus or 1))


def launched_by() -> str | None:
    """``mpirun``, ``mpiexec`` or ``srun``; None for a process that no launcher has started.

    Not by SLURM_* alone: inside a Slurm job the ranks that mpirun or mpiexec starts see those of its own daemons. Nor
    by PMI_*: srun --mpi=pmi2 speaks MPICH's protocol.
    """
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        return "mpirun"
    if "MPI_LOCALRANKID" in os.environ:
        return "mpiexec"
    if "SLURM_STEP_ID" in os.environ and ("PMIX_RANK" in os.environ or "PMI_RANK" in os.environ):
        return "srun"
    return None


def keep_signals() -> None:
    """Before MPI starts: have UCX leave this process the signals that it listens to."""
    os.environ.setdefault(_UCX_SIGNAL, "0")


def expected_ranks() -> int | None:
    """How many ranks `hpcasync run` has asked the launcher for; None when something else started this process."""
    return int(os.environ[RANKS]) if RANKS in os.environ else None


def only_checks() -> bool:
    """Shall this process read its options and end?"""
    return CHECK in os.environ


def srun_tasks() -> int | None:
    """How many processes srun has started beside and with this one; None when it was not srun."""
    if "SLURM_STEP_NUM_TASKS" not in os.environ or launched_by() in ("mpirun", "mpiexec"):
        return None
    return int(os.environ["SLURM_STEP_NUM_TASKS"])


def host(rank: int) -> dict[str, Any]:
    """Where this rank runs: host, CPU model, the CPUs it may use, and the machine's load average of the last minute."""
    return {
        "rank": rank,
        "host": socket.gethostname(),
        "cpu": _cpu_model(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
    }


def cores() -> int:
    """Physical cores that this process may use (hardware threads of one core count once)."""
    return len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
