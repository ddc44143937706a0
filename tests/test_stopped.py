"""A rank that is stopped (SIGSTOP) and goes on later: nobody waits for it longer than the strategy's bound says."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcasync.launch import command, environment, find_launcher
from tests.stopped_job import STEPS

JOB = Path(__file__).with_name("stopped_job.py")
STOPPED_AND_RUNNING = 3


def run(folder: Path, strategy: str) -> dict[str, Any]:
    out = folder / "found.json"
    words = command(
        find_launcher(),
        [sys.executable, str(JOB), str(out), *strategy.split()],
        ranks=STOPPED_AND_RUNNING,
        threads=1,
        cores=environment.cores(),
        root=os.geteuid() == 0,
        environment={},
    )
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["before"] + found["during"] + found["after"] == STEPS
    assert found["counts"] == [STEPS] * STOPPED_AND_RUNNING
    return found


@pytest.mark.alone
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("words", "bound"),
    [("hogwild", math.inf), ("downpour", math.inf), ("ssp", 4), ("eager bound=8", 8)],
)
def test_the_others_go_on_as_far_as_the_bound_allows(tmp_path: Path, words: str, bound: float) -> None:
    """Three seconds are hundreds of steps; a step that had begun may be counted on top of the bound."""
    during = run(tmp_path, words)["during"]
    if bound == math.inf:
        assert during >= 50
    else:
        assert 1 <= during <= bound + 2
