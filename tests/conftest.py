"""One test file for every world: simulated ranks of any size, and real ones under ``mpirun -n N pytest --world mpi``.

A test that takes the fixture ``ranks`` says what each rank does and asserts, with expected values written in rank and
size; it is marked ``mpi``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from hpcasync.faults import Faults
from hpcasync.laws import parse_law
from hpcasync.run import provenance
from hpcasync.world import World
from tests import slurm_cluster

SIZES = (1, 2, 3, 4)
REAL_SECOND = 0.0005  # seconds that a real rank sleeps for a simulated second of computing
Main = Callable[[World], Any]

# A loaded machine is no failure of the code under test.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--world", choices=("sim", "mpi", "horovod"), default="sim", help="the ranks that tests run on")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    if config.getoption("--world") != "sim":
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank > 0:  # rank 0 speaks for all; a failure elsewhere is printed by the hook below
            config.pluginmanager.get_plugin("terminalreporter")._tw._file = open("/dev/null", "w")  # noqa: PTH123, SIM115


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "ranks" in metafunc.fixturenames:
        world = metafunc.config.getoption("--world")
        chosen = metafunc.definition.get_closest_marker("sizes")
        sizes = chosen.args if chosen else SIZES
        metafunc.parametrize("ranks", sizes if world == "sim" else [world], indirect=True, ids=lambda n: f"ranks={n}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "ranks" in getattr(item, "fixturenames", ()):
            item.add_marker("mpi")


@pytest.fixture
def ranks(request: pytest.FixtureRequest) -> Iterator[Callable[..., list[Any]]]:
    """``ranks(main, **sim_options)`` runs ``main(world)`` on every rank; the list of what the ranks here returned.

    Of these options real ranks heed ``compute``: a step sleeps for a draw of the law, its second being REAL_SECOND.
    """
    if isinstance(request.param, int):
        from hpcasync.sim import simulate

        def run(main: Main, **options: Any) -> list[Any]:
            return simulate(main, request.param, **options)
    else:

        def run(main: Main, compute: str | None = None, **_: Any) -> list[Any]:
            world = launched_world(request.param)
            if compute is not None:  # ranks that sleep in every step take turns on the cores: none falls far behind
                world = Faults(world, {}, parse_law(compute), step_seconds=REAL_SECOND)
            value = main(world)
            world.close()
            return [value]

    yield run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a few milliseconds: what takes longer than they do, and has tests of its own, is left out."""
    monkeypatch.setattr(provenance, "git", lambda folder: None)  # two processes per run
    monkeypatch.setattr(provenance, "packages", dict)
    monkeypatch.setattr(torch, "manual_seed", torch.default_generator.manual_seed)  # notes no stack for other devices
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_cluster.Cluster]:
    """A Slurm cluster for all tests of this process that need one."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    found = slurm_cluster.start(tmp_path_factory.mktemp("slurm"), 27300 + 10 * number)
    yield found
    slurm_cluster.stop(found)


def launched_world(kind: str) -> World:
    """A World of all ranks of this MPI job."""
    if kind == "horovod":
        from hpcasync.horovod import HorovodWorld

        return HorovodWorld()
    from hpcasync.mpi import MPIWorld

    return MPIWorld()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A rank whose test failed ends the job: the others would wait for it."""
    report = yield
    if report.failed and item.config.getoption("--world") != "sim":
        from mpi4py import MPI

        if MPI.COMM_WORLD.size > 1:
            print(f"rank {MPI.COMM_WORLD.rank}: {item.nodeid}\n{report.longreprtext}", file=sys.stderr, flush=True)
            MPI.COMM_WORLD.Abort(1)
    return report
