"""Slurm: its version, what srun can tell ranks, the job around this process, and variables that change later ones."""

from __future__ import annotations

import re
import shutil
import subprocess

from hpcasync.doctor.finding import Finding
from hpcasync.launch import environment
from hpcasync.launch.slurm.overrides import sbatch_variables

_SECONDS = 20.0
_HEADING = re.compile(r"types are|versions available")


def cluster(library: str) -> list[Finding]:
    """What there is of Slurm; ``library`` is the MPI library's name, empty if that is not known."""
    if shutil.which("srun") is None:
        return [Finding("Slurm", "ok", "none here: ranks are started by mpirun")]
    version, answered = _ask("srun", "--version")
    if not answered:
        return [judge_slurm(None, version, {})]
    listed, _ = _ask("srun", "--mpi=list")
    return [judge_slurm(version, "", environment.slurm()), judge_pmi(pmi_types(listed), library), *_variables()]


def judge_slurm(version: str | None, said: str, job: dict[str, str]) -> Finding:
    """``version``: what srun says of itself; None if it said ``said`` instead."""
    values = {"version": version, "job": job}
    if version is None:
        advice = "on a machine of the cluster: have its slurm.conf put in place, or set SLURM_CONF; else never mind"
        return Finding("Slurm", "note", f"srun is there, and knows of no cluster: {said}", advice, values)
    where = f"in job {job['job_id']} on {job.get('nodelist', '?')}" if "job_id" in job else "outside of a job"
    return Finding("Slurm", "ok", f"{version}, {where}", values=values)


def pmi_types(listed: str) -> list[str]:
    """The types that ``srun --mpi=list`` names."""
    lines = [line.strip().removeprefix("srun: ") for line in listed.splitlines()]
    return [line for line in lines if line and not _HEADING.search(line)]


def judge_pmi(types: list[str], library: str) -> Finding:
    """Can srun start ranks of this MPI library by itself?"""
    values = {"types": types}
    told = f"srun --mpi can be {', '.join(types) or 'nothing'}"
    wanted, launcher = ("pmix", "srun-pmix") if library.startswith("Open MPI") else ("pmi2", "srun-pmi2")
    if not library:
        return Finding("PMI", "note", told, "which of them fits is not known before MPI starts", values)
    if any(kind.startswith(wanted) for kind in types):
        return Finding("PMI", "ok", f"{told}: --launcher {launcher} fits {library}", values=values)
    advice = f"use --launcher {'mpirun' if wanted == 'pmix' else 'mpiexec'}; srun would start ranks that do not meet"
    return Finding("PMI", "note", f"{told}: none fits {library}, which needs {wanted}", advice, values)


def _variables() -> list[Finding]:
    variables = sbatch_variables()
    return [judge_variables(variables)] if variables else []


def judge_variables(variables: dict[str, str]) -> Finding:
    told = f"{', '.join(variables)}: set, and stronger than #SBATCH lines"
    return Finding(
        "sbatch variables", "note", told, f"unset {' '.join(variables)}, unless you mean it", dict(variables)
    )


def _ask(*words: str) -> tuple[str, bool]:
    """(what a command says, True) or (why it does not, False)."""
    try:
        told = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error), False
    said = (told.stdout + told.stderr).strip()  # srun --mpi=list: on stdout or on stderr, by version
    return (said, True) if told.returncode == 0 else ((said.splitlines() or ["no answer"])[-1], False)
