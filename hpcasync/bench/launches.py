"""One launch: an MPI job that measures one subject and writes down what it saw."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcasync.bench import survival
from hpcasync.errors import UsageError
from hpcasync.launch import Launcher, command, environment
from hpcasync.launch.boxes import EXPLANATION

LAUNCH_SECONDS = 120.0  # for a launcher and its ranks to import PyTorch on a busy machine
START_SECONDS = 60.0  # for the ranks to find each other
END_SECONDS = 10.0  # for a launcher that was told to end
_REASON_LETTERS = 200
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception): .*", re.MULTILINE)  # the last line of a traceback
_STUCK = re.compile(r"^Timeout \(\d", re.MULTILINE)  # how faulthandler begins its stacks


@dataclass(frozen=True)
class Launch:
    """What one MPI job measures.

    Attributes:
        case, subject, metric, unit: of its row, should it fail; what it measures names its rows itself.
        measure: a name in ``hpcasync.bench.rank.MEASURES``.
        options: that function's, as JSON can hold them.
        seconds: how long it should take once the ranks are there.
        peer: started as the users of Horovod and DDP start it, without binding ranks to cores.
        apart: one rank per node.
        environment: variables for its ranks.
    """

    case: str
    subject: str
    metric: str
    unit: str
    measure: str
    ranks: int
    options: Mapping[str, Any]
    seconds: float
    peer: bool = False
    apart: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def timeout_seconds(self) -> float:
        """When its ranks are taken for stuck, counted from when they have imported PyTorch."""
        return START_SECONDS + 3 * self.seconds


class LaunchError(Exception):
    """A launch that gave no result; the message says why on one line. ``log`` is what it has printed."""

    def __init__(self, reason: str, log: str) -> None:
        self.log = log
        super().__init__(reason)


def argv(launcher: Launcher, launch: Launch, repeat: int, answer: Path) -> list[str]:
    """The launcher's command line; rank 0 leaves its samples in the file ``answer``."""
    told = {
        "measure": launch.measure,
        "options": dict(launch.options),
        "repeat": repeat,
        "ranks": launch.ranks,
        "timeout_seconds": launch.timeout_seconds,
        "answer": str(answer),
    }
    return command(
        launcher,
        [sys.executable, "-m", "hpcasync.bench.rank", json.dumps(told)],
        ranks=launch.ranks,
        threads=1,
        cores=0 if launch.peer else environment.cores(),
        root=os.geteuid() == 0,
        environment=launch.environment,
        apart=launch.apart,
    )


def perform(launcher: Launcher, launch: Launch, repeat: int, folder: Path) -> list[dict[str, Any]]:
    """Run the launch; the samples its ranks have measured. ``folder`` is for its files, and nobody else's meanwhile.

    Raises:
        LaunchError: it ended badly, or not in time.
    """
    answer, log = folder / "answer.json", folder / "log"
    answer.unlink(missing_ok=True)
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    if launch.measure == survival.MEASURE:
        words = survival.argv(launch.subject, launch.ranks, launch.case, repeat, folder)
    else:
        words = argv(launcher, launch, repeat, answer)
    with log.open("w") as file:
        code = run_within(words, file, launch.timeout_seconds + LAUNCH_SECONDS)
    told = log.read_text(errors="replace")
    if code == 0 and (run / "DONE").exists():
        return survival.samples(run, launch.case, launch.subject)
    if code != 0 or not answer.exists():
        raise LaunchError(reason(told, code, launch.timeout_seconds), told)
    samples: list[dict[str, Any]] = json.loads(answer.read_text())
    return samples


def run_within(words: Sequence[str], output: Any, timeout_seconds: float) -> int | None:
    """The exit code; None when it had to be ended."""
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            return process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:  # an interrupt ends the launch, too
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def reason(log: str, code: int | None, timeout_seconds: float) -> str:
    """Why a launch that printed ``log`` and ended with ``code`` (None: was ended) has no result, on one line."""
    if code is None or _STUCK.search(log):
        return f"no result within {timeout_seconds:g} s"
    said = [line.removeprefix(EXPLANATION) for line in log.splitlines() if line.startswith(EXPLANATION)]
    said += _ERROR.findall(log)
    if said:
        return said[0][:_REASON_LETTERS]
    return f"ended with exit code {code}" if code else "ended without a result"


def require_peer(name: str) -> None:
    """Raises UsageError when the peer ``name`` cannot be measured here; the message says what to do."""
    if name == "horovod":
        try:
            import horovod.torch

            horovod.torch.mpi_built()  # a Horovod without its compiled library imports, but lacks this
        except (ImportError, AttributeError):
            raise UsageError("--peers horovod: Horovod is not installed: make horovod") from None
    else:
        import torch.distributed

        if not torch.distributed.is_gloo_available():
            raise UsageError("--peers ddp: this PyTorch has no gloo: install one that has")
