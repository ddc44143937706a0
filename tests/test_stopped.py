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
# And their bounds.
STRATEGIES = {"hogwild": math.inf, "downpour": math.inf, "ssp": 4, "eager bound=8": 8, "stale bound=2": 2}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the job says of every strategy; the ranks are started once for all."""
    out = tmp_path_factory.mktemp("stopped") / "found.json"
    words = command(
        find_launcher(),
        [sys.executable, str(JOB), str(out), *STRATEGIES],
        ranks=STOPPED_AND_RUNNING,
        threads=1,
        cores=environment.cores(),
        root=os.geteuid() == 0,
        environment={},
    )
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    entries: dict[str, Any] = json.loads(out.read_text())
    return entries


@pytest.mark.alone
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("words", "bound"), STRATEGIES.items())
def test_the_others_go_on_as_far_as_the_bound_allows(found: dict[str, Any], words: str, bound: float) -> None:
    """Three seconds are more than a hundred steps; a step that had begun may be counted on top of the bound."""
    told = found[words]
    assert told["before"] + told["during"] + told["after"] == STEPS
    assert told["counts"] == [STEPS] * STOPPED_AND_RUNNING
    during = told["during"]
    if bound == math.inf:
        assert during >= 50
    else:
        assert 1 <= during <= bound + 2
