"""What is special about Horovod's World. It keeps the contract of every World as well: ``--world horovod``."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mpi4py import MPI

from hpcasync.errors import UsageError
from hpcasync.mpi import MPIWorld
from hpcasync.world import World, WorldError
from tests import tiny_job
from tests.training import build, classifier, digits_loss, train

ROOT = Path(__file__).parents[1]
on_every_rank = pytest.mark.horovod


@pytest.fixture
def world() -> Iterator[World]:
    """All ranks of this job; this process alone without a launcher."""
    skip_without_horovod()
    from hpcasync.horovod import HorovodWorld

    world = HorovodWorld()
    yield world
    world.close()


def skip_without_horovod() -> None:
    pytest.importorskip("horovod.torch.mpi_ops", reason="Horovod is not installed: make horovod", exc_type=ImportError)


def test_without_horovod_the_error_names_the_command(tmp_path: Path) -> None:
    options = ["--world", "horovod", "--results", str(tmp_path / "results")]
    program = f"""import sys; sys.modules["horovod"] = None
from tests.tiny_job import Tiny, main, train; main(train, Tiny, {options})"""
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("hpcasync: error: --world horovod: Horovod is not installed: make horovod")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()


@on_every_rank
def test_a_horovod_of_another_mpi_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcasync.horovod import HorovodWorld

    monkeypatch.setattr(MPI, "Get_library_version", lambda: "MPICH Version:      5.0.2\nMPICH Release date: ...")
    with pytest.raises(UsageError, match=r"Horovod was built for Open MPI v.*, and mpi4py runs on MPICH Version: "):
        HorovodWorld()


def test_a_start_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_horovod()
    from hpcasync import horovod

    monkeypatch.setattr(horovod, "_START_SECONDS", 0.1)
    monkeypatch.setattr(horovod.hvd, "init", lambda comm: time.sleep(1))
    with pytest.raises(WorldError, match=r"Horovod has not started within 0.1 s: has another rank died meanwhile\?"):
        horovod.HorovodWorld()


@on_every_rank
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.float16], ids=str)
def test_types_that_horovod_lacks_are_summed_in_wider_ones(world: World, dtype: torch.dtype) -> None:
    buffer = torch.arange(1000).remainder(25).to(dtype)
    world.allreduce(buffer)
    assert torch.equal(buffer, (torch.arange(1000).remainder(25) * world.size).to(dtype))


@on_every_rank
def test_bfloat16_is_rounded_once(world: World) -> None:
    ulp = 2.0**-8  # of 1 in bfloat16: added to 1 one by one, each would be lost
    buffer = torch.full((10,), 1.0 if world.rank == 0 else ulp, dtype=torch.bfloat16)
    world.allreduce(buffer)
    assert torch.equal(buffer, torch.full((10,), 1 + (world.size - 1) * ulp).bfloat16())


@on_every_rank
@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64], ids=str)
def test_types_without_a_sum_are_refused(world: World, dtype: torch.dtype) -> None:
    with pytest.raises(UsageError, match=rf"allreduce: {dtype}: Horovod sums torch.float64, "):
        world.allreduce(torch.zeros(3, dtype=dtype))


@on_every_rank
def test_every_rank_may_wait_in_its_own_order(world: World) -> None:
    buffers = [torch.full((10,), float(i)) for i in range(50)]  # more than there are names
    requests = [world.iallreduce(buffer) for buffer in buffers]
    order = torch.randperm(50, generator=torch.Generator().manual_seed(world.rank)).tolist()
    for i in order:
        requests[i].wait()
        assert requests[i].test()
        assert buffers[i].tolist() == [world.size * i] * 10


@on_every_rank
@pytest.mark.parametrize("words", ["sync", "stale", "stale bound=3", "as_ready"])
def test_strategies_train_as_on_mpi(world: World, words: str) -> None:
    def result(world: World) -> torch.Tensor:
        strategy = build(words, world, model := classifier(), lr=0.1, momentum=0.9)
        train(strategy, model, digits_loss, steps=20)
        strategy.drain()
        return strategy.result()

    mpi = MPIWorld()
    assert torch.allclose(result(world), result(mpi), rtol=1e-4, atol=1e-6)
    mpi.close()


def test_a_death_is_survived_on_horovod(tmp_path: Path) -> None:
    skip_without_horovod()
    launch = [sys.executable, "-m", "hpcasync.cli", "run", "-n", "3", "--world", "horovod", "--kill", "1:20"]
    job = [tiny_job.__file__, "--strategy", "stale", "--steps", "30", "--results", str(tmp_path), "--name", "a"]
    done = subprocess.run([*launch, *job], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    cause, end = done.stderr.splitlines()
    assert cause == "hpcasync: lost rank 1: Killed"
    assert end.startswith("hpcasync: lost rank 1 after ")
    kept = json.loads((tmp_path / "a" / "run.json").read_text())
    assert kept["status"] == "done"
    assert [failure["rank"] for failure in kept["failures"]] == [1]
    assert kept["world"]["kind"] == "horovod"
    assert kept["world"]["library"].startswith(f"Horovod {kept['packages']['horovod']} on Open MPI")
