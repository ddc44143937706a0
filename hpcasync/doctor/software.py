"""Packages beside which hpcasync runs: versions, Horovod, CUDA."""

from __future__ import annotations

import platform
import subprocess
import sys

import torch

from hpcasync.doctor.finding import Finding
from hpcasync.run import provenance

_SECONDS = 60.0
_ASK_HOROVOD = "import horovod.torch as h; h.init(); print(int(h.mpi_built()), int(h.mpi_threads_supported()))"


def software() -> list[Finding]:
    """Versions, Horovod and CUDA."""
    packages = provenance.packages()
    versions = {"python": platform.python_version(), **packages}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    horovod = judge_horovod(packages["horovod"], _horovod_says()) if "horovod" in packages else judge_horovod(None, "")
    return [Finding("software", "ok", told, values=versions), horovod, judge_cuda(torch.cuda.is_available())]


def judge_horovod(version: str | None, said: str) -> Finding:
    """``said``: two digits for "built with MPI" and "MPI's threads are supported"; anything else is an error."""
    values = {"version": version}
    if version is None:
        return Finding(
            "Horovod", "note", "not installed: no --world horovod", "only if you want to compare: make horovod", values
        )
    if said == "1 1":
        return Finding("Horovod", "ok", f"{version}, built with MPI", values=values)
    told = f"{version} does not start: {said}" if said[:1] not in ("0", "1") else f"{version} was built without MPI"
    return Finding("Horovod", "problem", told, "build it again against this MPI and this PyTorch: make horovod", values)


def judge_cuda(available: bool) -> Finding:
    values = {"available": available}
    if available:
        told = "there is a GPU, and hpcasync does not use it: parameters live in host memory"
        return Finding("CUDA", "note", told, "ask Slurm for no GPUs; use nodes without them", values)
    return Finding("CUDA", "ok", "no GPU; hpcasync trains on CPUs", values=values)


def _horovod_says() -> str:
    try:
        told = subprocess.run(
            [sys.executable, "-c", _ASK_HOROVOD], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_SECONDS:g} s"
    lines = (told.stderr if told.returncode else told.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit code {told.returncode}"
