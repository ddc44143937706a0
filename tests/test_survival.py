"""A rank dies, the others go on: at every call on simulated ranks, by SIGKILL on real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.small_job import RANKS, attempt, codes, parameters
from tests.variants import VARIANTS, Variant


def check(folder: Path, ended: list[tuple[int, Tensor] | None]) -> str:
    """What has become of a run that a death has met: "nothing", "went on" or "gave up"."""
    living = [rank for rank, end in enumerate(ended) if end is not None]
    if codes(ended) == {1}:
        assert not (folder / "DONE").exists()
        return "gave up"
    assert codes(ended) == {0}
    assert (folder / "DONE").exists()
    document = json.loads((folder / "run.json").read_text())
    assert document["status"] == "done"
    first, *others = parameters(ended)
    assert all(torch.equal(each, first) for each in others)
    assert torch.isfinite(first).all()
    dead = [rank for rank in range(RANKS) if rank not in living]
    assert {failure["rank"] for failure in document["failures"]} <= set(dead)
    return "went on" if document["failures"] else "nothing"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant.deaths], ids=str)
def test_a_death_at_any_call_is_survived(variant: Variant, victim: int, tmp_path: Path) -> None:
    fates = []
    for call in range(1, 10_000):
        folder = tmp_path / str(call)
        ended = attempt(folder, variant.words, fail={victim: call}, epochs=2, batches=2)
        fates.append(check(folder, ended))
        if None not in ended:
            break
    assert fates == sorted(fates, key=["gave up", "went on", "nothing"].index)
    assert fates.count("went on") >= 5


@pytest.mark.alone
@pytest.mark.timeout(600)  # four launches, on a machine that others may load
def test_real_ranks_are_killed_and_the_others_finish(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    words = ["--strategies", "eager;downpour", "--cases", "killed", "--repeats", "2", "--json", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "hpcasync.cli", "bench", "survival", *words, "--results", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {(row["subject"], row["metric"]): row["runs"] for row in json.loads(out.read_text())}
    for subject in ("eager", "downpour"):
        assert found[subject, "survived"] == [1.0, 1.0]  # first without rank 0, which leads; then without rank 1
        assert min(found[subject, "accuracy"]) >= 0.93
        assert min(found[subject, "pause"]) > 0
