"""The launcher's command line, as a pure function."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcasync.errors import UsageError
from hpcasync.launch.environment import Group
from hpcasync.launch.launcher import Binding, Launcher
from hpcasync.launch.srun import Part, srun

# The others hear of the end of a rank, whatever ends it.
_GUARD = (sys.executable, "-ES", str(Path(__file__).with_name("guard.py")))
# Slurm signals the launcher itself and its daemons when the ranks shall write a checkpoint.
DEAF = (sys.executable, "-ES", str(Path(__file__).with_name("deaf.py")))


def command(
    launcher: Launcher,
    program: Sequence[str],
    *,
    ranks: int,
    threads: int,
    cores: int,
    root: bool,
    environment: Mapping[str, str],
    survivable: bool = False,
    apart: bool = False,
    nodes: int | None = None,
    binding: Binding = "auto",
) -> list[str]:
    """The argv that starts ``program`` on ``ranks`` ranks of ``threads`` threads each.

    Args:
        cores: physical cores on this machine that the ranks may use. When they all fit, each rank is bound to its
            own; otherwise none is bound and idle ranks yield their core.
        root: the user is root, whom Open MPI turns away unless told otherwise.
        environment: variables for the ranks, also for those on other nodes.
        survivable: when a rank dies, the launcher lets the others go on. MPICH's and Slurm's cannot.
        apart: one rank per node; none is bound.
        binding: core or none: bind ranks, or do not, whether they fit or not.
        nodes: of the Slurm allocation that the ranks are spread over, each with as many ``cores``; None outside of one.
    """
    fits = -(-ranks // (nodes or 1)) * threads <= cores and not apart
    bound = fits if binding == "auto" else binding == "core"
    if launcher.family == "Slurm":
        return [*DEAF, "TERM", *srun(launcher, [Part(program, ranks, threads)], environment, bound)]
    variables = {"OMP_NUM_THREADS": str(threads), **environment}
    first: list[str] = []
    if launcher.family == "Open MPI":
        if survivable:
            first += ["--with-ft", "ulfm"]
            program = [*_GUARD, *program]
        first += ["--map-by", "ppr:1:node"] if apart else []
        if nodes is None:
            first += ["--oversubscribe"]  # slots are cores
        else:  # slots are tasks, and Slurm signals the daemons on the other nodes, too
            first += ["--prtemca", "prte_launch_agent", " ".join([*DEAF, "TERM,USR1", "prted"])]
        build = _open_mpi
    else:
        first += ["-ppn", "1"] if apart else []
        build = _mpich
    words = [str(launcher.path), *first, *build(ranks, threads, bound, root, variables), *program]
    return words if nodes is None else [*DEAF, "TERM", *words]


def _open_mpi(ranks: int, threads: int, bound: bool, root: bool, variables: Mapping[str, str]) -> list[str]:
    words = ["--allow-run-as-root"] if root else []
    words += ["-n", str(ranks)]
    words += ["--mca", "osc", "^ucx"]  # it announces its priority on stderr, once per window
    if bound:
        words += ["--map-by", f"slot:PE={threads}", "--bind-to", "core"]
    else:
        words += ["--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]
    for name, value in variables.items():
        words += ["-x", f"{name}={value}"]
    return words


def _mpich(ranks: int, threads: int, bound: bool, root: bool, variables: Mapping[str, str]) -> list[str]:
    words = ["-n", str(ranks), "-bind-to", f"core:{threads}" if bound else "none"]
    if not bound:
        words += ["-genv", "MPIR_CVAR_ENABLE_HEAVY_YIELD", "1"]
    for name, value in variables.items():
        words += ["-genv", name, value]
    return words


def heterogeneous(
    launcher: Launcher,
    program: Sequence[str],
    groups: Sequence[Group],
    environment: Mapping[str, str],
    binding: Binding = "auto",
) -> list[str]:
    """The argv that starts ``program`` on all tasks of a heterogeneous Slurm job, with a task's cores as its threads.

    Args:
        program: Python, the job and its words. A --threads of its own comes after ours, and so decides.

    Raises:
        UsageError: a launcher other than srun: it would see the first group alone.
    """
    if launcher.family != "Slurm":
        raise UsageError(f"{launcher.path.name} sees only the first group of a heterogeneous job: --launcher srun-pmix")
    parts = [
        Part([*program[:2], "--threads", str(group.cpus_per_task), *program[2:]], group.tasks, group.cpus_per_task)
        for group in groups
    ]
    return [*DEAF, "TERM", *srun(launcher, parts, environment, binding != "none")]
