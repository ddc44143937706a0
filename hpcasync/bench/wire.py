"""What windows cost between two nodes: push and pull against MPI's own messages and windows of as many bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from mpi4py import MPI

from hpcasync.world import Window, World

SENDRECV, SEND, ACCUMULATE = "mpi sendrecv", "mpi send", "mpi accumulate"
PUSH, PULL = "hpcasync push", "hpcasync pull"
TIME = "transfer_time"


def between_nodes(world: World, repeat: int, *, sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Collective. Milliseconds of what rank 0 does with rank 1, on another node, which meanwhile waits in a barrier.

    "mpi sendrecv" moves the bytes in both directions at once, "mpi send" in one, with an empty answer. They come first:
    once there is a window of ours, a progress thread works beside them.

    Raises:
        RuntimeError: the ranks share a node.
    """
    if world.node.size > 1:
        raise RuntimeError("both ranks are on one node: this bench is for two; give the launcher a second host")
    samples = []
    for size in sizes:
        samples += _messages(world, size, rounds)
    for size in sizes:
        samples += _accumulate(world, size, rounds)
    for size in sizes:
        samples += _windows(world, size, rounds)
    return samples


def _messages(world: World, size: int, rounds: int) -> list[dict[str, Any]]:
    comm, first, peer = MPI.COMM_WORLD, world.rank == 0, 1 - world.rank
    out, back, nothing = torch.ones(size // 4), torch.ones(size // 4), torch.empty(0)
    send, receive = (out, nothing) if first else (nothing, back)
    both = partial(comm.Sendrecv, out.numpy(), peer, 0, back.numpy(), peer, 0)
    one = partial(comm.Sendrecv, send.numpy(), peer, 0, receive.numpy(), peer, 0)
    return [_timed(world, size, SENDRECV, both, rounds), _timed(world, size, SEND, one, rounds)]


def _accumulate(world: World, size: int, rounds: int) -> list[dict[str, Any]]:
    """The target is inside MPI meanwhile: it waits for a message that follows."""
    comm, source, nothing = MPI.COMM_WORLD, torch.ones(size // 4), torch.empty(0).numpy()
    window = MPI.Win.Allocate(size, 4, comm=comm)

    def add() -> None:
        window.Accumulate([source.numpy(), MPI.FLOAT], 1)
        window.Flush(1)
        comm.Send(nothing, 1)

    window.Lock_all()
    sample = _timed(world, size, ACCUMULATE, add if world.rank == 0 else partial(comm.Recv, nothing, 0), rounds)
    window.Unlock_all()
    window.Free()
    return [sample]


def _windows(world: World, size: int, rounds: int) -> list[dict[str, Any]]:
    window, vector = world.window(size // 4), torch.ones(size // 4)
    samples = []
    for subject, verb in ((PUSH, window.push), (PULL, window.pull)):
        operation = partial(_complete, window, partial(verb, vector, 1)) if world.rank == 0 else _nothing
        samples.append(_timed(world, size, subject, operation, rounds))
    window.free()
    return samples


def _complete(window: Window, begin: Callable[[], None]) -> None:
    begin()
    window.flush()


def _nothing() -> None:
    pass


def _timed(world: World, size: int, subject: str, operation: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """The median over the rounds but the first, which touches the pages."""
    seconds = []
    for _ in range(rounds + 1):
        world.barrier()
        started = time.perf_counter()
        operation()
        seconds.append(time.perf_counter() - started)
    world.barrier()
    value = 1e3 * statistics.median(seconds[1:])
    return {"case": f"{size >> 20} MiB", "subject": subject, "metric": TIME, "unit": "ms", "value": value}
