"""Slurm's own launcher: srun's command line, as a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcasync.launch.launcher import Launcher


@dataclass(frozen=True)
class Part:
    """Ranks of one kind: the program that each runs, how many, and with how many threads."""

    program: Sequence[str]
    ranks: int
    threads: int


def srun(launcher: Launcher, parts: Sequence[Part], environment: Mapping[str, str], bound: bool) -> list[str]:
    """The argv that starts all ``parts`` in one world; several are the groups of a heterogeneous job, in their order.

    srun takes over neither -c nor, after sbatch --export=NONE, the environment of the batch script.
    """
    variables = dict(environment)
    if launcher.pmi == "pmix":
        variables["PMIX_MCA_psec"] = "native"  # Slurm's side may offer munge's first, which the ranks' side may lack
    words = [str(launcher.path)]
    for index, part in enumerate(parts):
        words += [":"] * (index > 0) + [f"--het-group={index}"] * (len(parts) > 1)
        words += [
            f"--mpi={launcher.pmi}",
            "--cpu-bind=cores" if bound else "--cpu-bind=none",
            "--kill-on-bad-exit=1",
        ]
        words += ["-n", str(part.ranks), "-c", str(part.threads)]
        told = {"OMP_NUM_THREADS": str(part.threads), **variables}
        words += [",".join(["--export=ALL", *(f"{name}={value}" for name, value in told.items())]), *part.program]
    return words
