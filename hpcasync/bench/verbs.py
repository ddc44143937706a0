"""What the World's verbs cost: bandwidth of push and pull, allreduce, a busy target, one strategy.step()."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from mpi4py import MPI
from torch import Tensor

from hpcasync.bench.trainers import Ours, compute, join_gloo
from hpcasync.bench.workloads import WORKLOADS
from hpcasync.strategies import parse_strategy
from hpcasync.world import Window, World

MPI_RAW, GLOO, COPY = "mpi", "gloo", "copy"
OURS, OURS_ANYWHERE = "hpcasync", "hpcasync, any memory"
BANDWIDTH, ALLREDUCE, BUSY = "bandwidth", "allreduce_time", "push_flush_time"
STEP, WAITED = "step_cost", "of_it_waited"
_ELEMENT_BYTES = 4
_LOOP_BYTES = 16 << 20  # enough operations in a row that the clock and the barrier before them do not count
_LOOP_LIMIT = 50
_BUSY_SECONDS = 0.5
_BUSY_BYTES = 4 << 20
_STEPS = 200


def one_sided(world: World, repeat: int, *, sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Collective. GB/s of push and pull from rank 0 to rank 1, and of a plain copy of as many bytes, in turns."""
    samples = []
    for size in sizes:
        length = size // _ELEMENT_BYTES
        window = world.window(length)
        source, target = torch.rand(length), torch.rand(length)

        world.barrier()
        if world.rank == 0:
            operations: list[Callable[[], Any]] = [
                partial(_push, window, source),
                partial(_pull, window, target),
                partial(target.copy_, source),
            ]
            names = [("push", OURS), ("pull", OURS), ("copy", COPY)]
            seconds = dict(zip(names, _in_turns(operations, size, rounds), strict=True))
            for verb in ("push", "pull"):
                for subject, taken in ((OURS, seconds[verb, OURS]), (COPY, seconds["copy", COPY])):
                    samples.append(_sample(f"{verb} {_said(size)}", subject, BANDWIDTH, "GB/s", size / taken / 1e9))
        world.barrier()
        window.free()
    return samples


def _push(window: Window, source: Tensor) -> None:
    window.push(source, 1)
    window.flush()


def _pull(window: Window, target: Tensor) -> None:
    window.pull(target, 1)
    window.flush()


def busy_target(world: World, repeat: int, *, rounds: int) -> list[dict[str, Any]]:
    """Collective. Milliseconds of a push of 4 MiB and its flush, to a rank that computes and does not enter MPI."""
    window = world.window(_BUSY_BYTES // _ELEMENT_BYTES)
    source = torch.rand(_BUSY_BYTES // _ELEMENT_BYTES)
    matrix = torch.rand(256, 256)
    times = []
    for _ in range(rounds + 1):
        world.barrier()
        started = time.monotonic()
        if world.rank == 1:
            while time.monotonic() - started < _BUSY_SECONDS:
                torch.mm(matrix, matrix)
        else:
            time.sleep(_BUSY_SECONDS / 5)
            started = time.monotonic()
            _push(window, source)
            times.append(time.monotonic() - started)
    if not times:
        return []
    value = statistics.median(times[1:]) * 1e3  # the first one touches the source's pages
    return [_sample(f"push {_said(_BUSY_BYTES)}, target busy for {_BUSY_SECONDS} s", OURS, BUSY, "ms", value)]


def allreduce(world: World, repeat: int, *, subject: str, sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Collective. Microseconds of one allreduce in place: ours and raw MPI's in turns, or a peer's alone.

    Ours is measured twice: in a buffer of ``world.buffer()``, where strategies keep their gradients, and in any memory.

    Args:
        subject: "hpcasync" (measures "mpi" as well), "gloo", or one that begins with "horovod".
    """
    reducers, end = _reducers(world, subject)
    samples = []
    for size in sizes:
        length = size // _ELEMENT_BYTES
        operations = [partial(reduce, memory(length)) for reduce, memory in reducers.values()]
        case = f"allreduce {_said(size)}, {world.size} ranks"
        for name, seconds in zip(reducers, _in_turns(operations, size, rounds), strict=True):
            samples.append(_sample(case, name, ALLREDUCE, "µs", 1e6 * seconds))
    end()
    return samples


def step_cost(world: World, repeat: int, *, subject: str) -> list[dict[str, Any]]:
    """Collective. Microseconds of one strategy.step() on a model of 9,610 parameters beyond the optimizer's step(), and
    how many of them it waited for the other rank. Both follow a backward pass, so they find the same caches."""
    work = WORKLOADS["mlp 10 k"]
    x, y = work.samples()
    alone, ours = Ours(work, world, None), Ours(work, world, parse_strategy(subject.split()))
    inner, whole, waited = [], [], []
    for _ in range(_STEPS):
        compute(alone.model, x, y)
        started = time.perf_counter()
        alone.strategy.optimizer.step()
        inner.append(time.perf_counter() - started)
    world.barrier()
    for _ in range(_STEPS):
        compute(ours.model, x, y)
        waited_before, started = world.waited, time.perf_counter()
        ours.strategy.step()
        whole.append(time.perf_counter() - started)
        waited.append(world.waited - waited_before)
    ours.end()
    case = "step of 10 k parameters"
    return [
        _sample(case, subject, STEP, "µs", 1e6 * (statistics.median(whole) - statistics.median(inner))),
        _sample(case, subject, WAITED, "µs", 1e6 * statistics.median(waited)),
    ]


Reducers = dict[str, tuple[Callable[[Tensor], Any], Callable[[int], Tensor]]]


def _reducers(world: World, subject: str) -> tuple[Reducers, Callable[[], None]]:
    """({name: (verb, what allocates its buffer)}, what ends them)."""
    if subject.startswith("horovod"):
        import horovod.torch as hvd

        hvd.init()
        return {subject: (partial(hvd.allreduce_, op=hvd.Sum), _memory)}, hvd.shutdown
    if subject == GLOO:
        from torch import distributed

        join_gloo(world)
        return {subject: (distributed.all_reduce, _memory)}, distributed.destroy_process_group

    def raw(buffer: Tensor) -> None:
        MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, buffer.numpy(), MPI.SUM)

    ours = {OURS: (world.allreduce, world.buffer), OURS_ANYWHERE: (world.allreduce, _memory)}
    return {**ours, MPI_RAW: (raw, _memory)}, lambda: None


def _memory(length: int) -> Tensor:
    """(length,) zeros: on pages of its own, and sums of them stay finite."""
    return torch.ones(length).zero_()


def _in_turns(operations: Sequence[Callable[[], Any]], size: int, rounds: int) -> list[float]:
    """Median seconds of each operation; every round does each of them, many times in a row where they are short."""
    loops = max(1, min(_LOOP_LIMIT, _LOOP_BYTES // size))
    times: list[list[float]] = [[] for _ in operations]
    for operation in operations:
        operation()
    for _ in range(rounds):
        for operation, taken in zip(operations, times, strict=True):
            started = time.perf_counter()
            for _ in range(loops):
                operation()
            taken.append((time.perf_counter() - started) / loops)
    return [statistics.median(taken) for taken in times]


def _sample(case: str, subject: str, metric: str, unit: str, value: float) -> dict[str, Any]:
    return {"case": case, "subject": subject, "metric": metric, "unit": unit, "value": value}


def _said(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
