"""What Slurm says about jobs: by squeue while they are in the queue, then by sacct."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence

TIMEOUT_SECONDS = 15.0
# The states of a job that will not write any more, as `man squeue` names them.
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"}
)


def job_states(jobs: Iterable[str]) -> dict[str, str]:
    """{job id: state, e.g. RUNNING} of those ``jobs`` that Slurm knows; empty where there is no Slurm.

    Args:
        jobs: ids as in SLURM_JOB_ID, so an array's tasks have one each.
    """
    wanted = sorted({job for job in jobs if job.isascii() and job.isdigit()}, key=int)
    if not wanted:
        return {}
    found = _first_words(_ask(["squeue", "--noheader", "--me", "--array", "--states=all", "--format=%A|%T"]))
    missing = [job for job in wanted if job not in found]
    if missing:
        ids = ",".join(missing)
        fields = ["--noheader", "--parsable2", f"--jobs={ids}"]
        # Without a database of accounts, the file of completed jobs may know: a line per attempt, the last one counts.
        found |= _first_words(_ask(["sacct", "-X", *fields, "--format=JobIDRaw,State"])) or _first_words(
            _ask(["sacct", "--completion", *fields, "--format=JobID,State"])
        )
    return {job: found[job] for job in wanted if job in found}


def _ask(argv: Sequence[str]) -> str:
    """What the command prints; nothing where there is none, or it fails."""
    if shutil.which(argv[0]) is None:
        return ""
    try:
        told = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return told.stdout if told.returncode == 0 else ""


def _first_words(text: str) -> dict[str, str]:
    """{job: state} of lines such as ``17|CANCELLED by 1000``."""
    rows = (line.split("|") for line in text.splitlines())
    return {row[0]: row[1].split()[0] for row in rows if len(row) > 1 and row[1].split()}
