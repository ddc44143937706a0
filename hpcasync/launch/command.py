"""The launcher's command line, as a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpcasync.launch.launcher import Launcher


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
) -> list[str]:
    """The argv that starts ``program`` on ``ranks`` ranks of ``threads`` threads each.

    Args:
        cores: physical cores on this machine that the ranks may use. When they all fit, each rank is bound to its
            own; otherwise none is bound and idle ranks yield their core.
        root: the user is root, whom Open MPI turns away unless told otherwise.
        environment: variables for the ranks, also for those on other nodes.
        survivable: when a rank dies, the launcher lets the others go on. MPICH's cannot.
        apart: one rank per node; none is bound.
    """
    fits = ranks * threads <= cores and not apart
    variables = {"OMP_NUM_THREADS": str(threads), **environment}
    if launcher.family == "Open MPI":
        first = ["--with-ft", "ulfm"] if survivable else []
        first += ["--map-by", "ppr:1:node"] if apart else []
        build = _open_mpi
    else:
        first, build = ["-ppn", "1"] if apart else [], _mpich
    return [str(launcher.path), *first, *build(ranks, threads, fits, root, variables), *program]


def _open_mpi(ranks: int, threads: int, fits: bool, root: bool, variables: Mapping[str, str]) -> list[str]:
    words = ["--allow-run-as-root"] if root else []
    words += ["--oversubscribe", "-n", str(ranks)]
    words += ["--mca", "osc", "^ucx"]  # it announces its priority on stderr, once per window
    if fits:
        words += ["--map-by", f"slot:PE={threads}", "--bind-to", "core"]
    else:
        words += ["--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]
    for name, value in variables.items():
        words += ["-x", f"{name}={value}"]
    return words


def _mpich(ranks: int, threads: int, fits: bool, root: bool, variables: Mapping[str, str]) -> list[str]:
    words = ["-n", str(ranks), "-bind-to", f"core:{threads}" if fits else "none"]
    if not fits:
        words += ["-genv", "MPIR_CVAR_ENABLE_HEAVY_YIELD", "1"]
    for name, value in variables.items():
        words += ["-genv", name, value]
    return words
