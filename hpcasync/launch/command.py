"""The launcher's command line, as a pure function."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcasync.launch.launcher import Binding, Launcher

_DEAF = [sys.executable, "-ES", str(Path(__file__).with_name("deaf.py"))]


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
    variables = {"OMP_NUM_THREADS": str(threads), **environment}
    first: list[str] = []
    if launcher.family == "Open MPI":
        first += ["--with-ft", "ulfm"] if survivable else []
        first += ["--map-by", "ppr:1:node"] if apart else []
        if nodes is None:
            first += ["--oversubscribe"]  # slots are cores
        else:  # slots are tasks, and Slurm signals the daemons on the other nodes, too
            first += ["--prtemca", "prte_launch_agent", " ".join([*_DEAF, "TERM,USR1", "prted"])]
        build = _open_mpi
    elif launcher.family == "MPICH":
        first += ["-ppn", "1"] if apart else []
        build = _mpich
    else:
        first += [f"--mpi={launcher.pmi}"]
        variables |= {"PMIX_MCA_psec": "native"} if launcher.pmi == "pmix" else {}  # Slurm's PMIx may want munge's
        build = _srun
    words = [str(launcher.path), *first, *build(ranks, threads, bound, root, variables), *program]
    return words if nodes is None else [*_DEAF, "TERM", *words]


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


def _srun(ranks: int, threads: int, bound: bool, root: bool, variables: Mapping[str, str]) -> list[str]:
    """srun takes over neither -c nor, after sbatch --export=NONE, the environment of the batch script."""
    words = ["-n", str(ranks), "-c", str(threads), "--cpu-bind=cores" if bound else "--cpu-bind=none"]
    words += ["--kill-on-bad-exit=1"]
    return [*words, ",".join(["--export=ALL", *(f"{name}={value}" for name, value in variables.items())])]
