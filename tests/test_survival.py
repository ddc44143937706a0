"""A rank dies, the others go on: at every call on simulated ranks, by SIGKILL on real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcasync.replica import Replica
from hpcasync.run import Options, Run, provenance
from hpcasync.run.main import live
from hpcasync.run.provenance import Origin
from hpcasync.run.stop import Signals
from hpcasync.run.worlds import KINDS
from hpcasync.sim import simulate
from hpcasync.world import World
from tests.variants import VARIANTS, Variant

RANKS = 3


def train(run: Run, job: Options) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    replica = Replica(model)
    optimizer = torch.optim.SGD(replica.parameters(), lr=0.1, momentum=0.5)
    x = torch.linspace(-1, 1, 8).view(4, 2) + run.rank
    run.start(replica, optimizer, lambda model: {"loss": float(model(x).mean())})
    for batch in run.steps([x, x + 1]):
        model(batch).pow(2).mean().backward()
        run.step(torch.zeros(()))


def survive(folder: Path, words: list[str], fail: dict[int, Any]) -> list[tuple[int, Tensor] | None]:
    """A run of three ranks and a few steps: each rank's exit code and parameters, None for the dead."""
    options = Options(
        strategy=tuple(words), world="sim", ranks=RANKS, results=folder.parent, name=folder.name, epochs=2
    )

    def main(world: World) -> tuple[int, Tensor]:
        run = Run(world, options, Origin(Path("job.py"), "sim", "SimWorld", []), Signals())
        code = live(train, options, run, KINDS["sim"])
        replica = run.strategy.replica if run.folder else None
        return code, torch.cat([pair.params.detach().clone() for pair in replica.pairs]) if replica else torch.zeros(0)

    return simulate(main, RANKS, compute="exponential", alpha=0.01, fail=fail)


def check(folder: Path, ended: list[tuple[int, Tensor] | None]) -> str:
    """What has become of a run that a death has met: "nothing", "went on" or "gave up"."""
    living = [rank for rank, end in enumerate(ended) if end is not None]
    codes = {end[0] for end in ended if end is not None}
    if codes == {1}:
        assert not (folder / "DONE").exists()
        return "gave up"
    assert codes == {0}
    assert (folder / "DONE").exists()
    document = json.loads((folder / "run.json").read_text())
    assert document["status"] == "done"
    parameters = [end[1] for end in ended if end is not None]
    assert all(torch.equal(each, parameters[0]) for each in parameters)
    assert torch.isfinite(parameters[0]).all()
    dead = [rank for rank in range(RANKS) if rank not in living]
    assert {failure["rank"] for failure in document["failures"]} <= set(dead)
    return "went on" if document["failures"] else "nothing"


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant.deaths], ids=str)
def test_a_death_at_any_call_is_survived(
    variant: Variant, victim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "git", lambda folder: None)  # two processes per run
    monkeypatch.setattr(provenance, "packages", dict)
    monkeypatch.setattr(torch, "manual_seed", torch.default_generator.manual_seed)  # notes no stack for other devices
    monkeypatch.setattr(os, "fsync", lambda file: None)
    fates = []
    for call in range(1, 10_000):
        folder = tmp_path / str(call)
        ended = survive(folder, variant.words.split(), {victim: call})
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
