"""What windows cost between two nodes: push and pull against MPI's own messages of as many bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from mpi4py import MPI

from hpcasync.world import Window, World

OURS, MPI_RAW = "hpcasync", "mpi"
TIME = "transfer_time"


def between_nodes(world: World, repeat: int, *, sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Collective. Milliseconds of what rank 0 does with the last rank; in between the others do nothing.

    "sendrecv" moves the bytes in both directions at once (MPI_Sendrecv), "send" in one, with an empty answer. They come
    first: once there is a window, a progress thread works beside them.
    """
    last, comm = world.size - 1, MPI.COMM_WORLD
    if world.rank not in (0, last) or world.size == 1:
        raise ValueError(f"{world.size} ranks: this is measured between 2")
    first, peer = world.rank == 0, last - world.rank
    samples = []
    for size in sizes:
        out, back, nothing = torch.ones(size // 4), torch.ones(size // 4), torch.empty(0)
        send, receive = (out, nothing) if first else (nothing, back)
        messages = {
            "sendrecv": partial(comm.Sendrecv, out.numpy(), peer, 0, back.numpy(), peer, 0),
            "send": partial(comm.Sendrecv, send.numpy(), peer, 0, receive.numpy(), peer, 0),
        }
        for name, message in messages.items():
            samples += _timed(world, f"{name} {size >> 20} MiB", MPI_RAW, message, rounds)
    for size in sizes:
        window = world.window(size // 4)
        for name, verb in (("push", window.push), ("pull", window.pull)):
            operation = partial(_complete, window, partial(verb, torch.ones(size // 4), last)) if first else _nothing
            samples += _timed(world, f"{name} {size >> 20} MiB", OURS, operation, rounds)
        window.free()
    return samples


def _complete(window: Window, begin: Callable[[], None]) -> None:
    begin()
    window.flush()


def _nothing() -> None:
    pass


def _timed(world: World, case: str, subject: str, operation: Callable[[], Any], rounds: int) -> list[dict[str, Any]]:
    """The median over the rounds but the first, which touches the pages."""
    seconds = []
    for _ in range(rounds + 1):
        world.barrier()
        started = time.perf_counter()
        operation()
        seconds.append(time.perf_counter() - started)
    world.barrier()
    value = 1e3 * statistics.median(seconds[1:])
    return [{"case": case, "subject": subject, "metric": TIME, "unit": "ms", "value": value}]
