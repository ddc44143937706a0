"""A Slurm cluster on this machine for one test session: slurm/cluster.sh's, in a folder and on ports of its own."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).parents[1]
NODES = 4
PATIENCE_SECONDS = 100.0  # until a job must have done what is waited for, on a busy machine

Entries = dict[str, str]


@functools.cache
def why_not() -> str | None:
    """Why there can be no cluster on this machine, or None when there can."""
    if os.geteuid() != 0:
        return "a Slurm cluster on one machine needs root: each slurmd has a hostname of its own"
    missing = [tool for tool in ("slurmctld", "slurmd", "munged", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"a Slurm cluster needs {', '.join(missing)} (on Debian: apt-get install slurm-wlm munge libpmix-dev)"
    return None


@dataclass(frozen=True)
class Cluster:
    """A running cluster; ``folder`` is for results and the jobs' output."""

    folder: Path
    env: dict[str, str]

    def command(self, *words: str | Path, **variables: str) -> str:
        """The standard output of one of Slurm's commands, or of a script, run in the repository."""
        line = [str(word) for word in words]
        told = subprocess.run(
            line, cwd=HOME, env=self.env | variables, capture_output=True, text=True, timeout=60, check=False
        )
        assert told.returncode == 0, f"{' '.join(line)}: {told.stdout}{told.stderr}"
        return told.stdout

    def submit(self, *words: str | Path, **variables: str) -> str:
        """The id of a job that has been submitted; its output goes to ``folder``/<id>.out."""
        arrays = any(str(word).startswith("--array") for word in words)
        output = self.folder / ("%A_%a.out" if arrays else "%j.out")
        return self.command("sbatch", "--parsable", f"--output={output}", *words, **variables).strip()

    def output(self, job: str) -> str:
        """What the job, or the task of an array, has printed so far."""
        path = self.folder / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def show(self, job: str) -> Entries:
        """Slurm's word on a job or a task of an array."""
        line = self.command("scontrol", "show", "job", "--oneliner", job).splitlines()[0]
        return dict(word.split("=", 1) for word in line.split() if "=" in word)

    def wait(self, condition: Callable[[], bool], what: str, *jobs: str) -> None:
        """Until ``condition()`` holds; otherwise the failure shows what ``jobs`` have printed."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            outputs = "\n".join(f"--- {job}\n{self.output(job)}" for job in jobs)
            assert time.monotonic() < end, f"waited {PATIENCE_SECONDS:.0f} s for {what}\n{outputs}"
            time.sleep(0.2)

    def wait_for_state(self, job: str, *states: str) -> Entries:
        """Slurm's word on the job once it is in one of these states."""
        self.wait(lambda: self.show(job)["JobState"] in states, f"job {job} to be {' or '.join(states)}", job)
        return self.show(job)

    def end(self, job: str) -> Entries:
        """Slurm's word on the job once it has ended for good."""
        return self.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def wait_for_steps(self, run: Path, job: str, steps: int = 3) -> None:
        """Until the run's rank 0 has written that it has made some steps."""
        metrics = run / "metrics.rank0.jsonl"
        self.wait(lambda: metrics.exists() and metrics.read_text().count('"loss"') >= steps, f"steps in {run}", job)

    def skip_hold(self, job: str) -> None:
        """Have a requeued job start soon; Slurm would hold it back for two minutes.

        Not in the same second: then its credentials would count as those that the requeueing has revoked.
        """
        self.wait(lambda: self.show(job)["JobState"] == "PENDING", f"job {job} to be requeued", job)
        self.command("scontrol", "update", f"JobId={job}", "StartTime=now+2")

    def bring_back(self, node: str) -> None:
        """A node that was set down; one that has come back by itself needs nothing."""
        if "State=DOWN" in self.command("scontrol", "show", "node", node):
            self.command("scontrol", "update", f"NodeName={node}", "State=RESUME")


def start(folder: Path, port: int) -> Cluster:
    """A cluster of ``NODES`` nodes of 2 CPUs on ``port`` and those above; to be ended by :func:`stop`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    lab = {"HPCASYNC_CLUSTER": str(folder / "cluster"), "HPCASYNC_CLUSTER_PORT": str(port)}
    env = (
        inherited
        | lab
        | {
            "SLURM_CONF": str(folder / "cluster" / "slurm.conf"),
            "HPCASYNC_SITE": str(folder / "cluster" / "site.sh"),
            "HPCASYNC_RESULTS": str(folder),
            "HPCASYNC_PYTHON": sys.executable,
        }
    )
    cluster = Cluster(folder, env)
    cluster.command(HOME / "slurm" / "cluster.sh", "start", str(NODES))
    return cluster


def stop(cluster: Cluster) -> None:
    """End the jobs and the daemons."""
    cluster.command(HOME / "slurm" / "cluster.sh", "stop")
