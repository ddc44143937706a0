"""Making posted collectives advance: an MPI library works on them only while somebody is inside one of its calls."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from mpi4py import MPI
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.mpi.failure import rank_failed
from hpcasync.mpi.segment import Bytes
from hpcasync.world import HALF_TYPES

_SPIN_SECONDS = 1e-4
_SHORTEST_PAUSE_SECONDS = 5e-5
_LONGEST_PAUSE_SECONDS = 1e-3
_LOOKS = 32

OPTION = "HPCASYNC_PROGRESS"  # thread (unless given) or none

Found = TypeVar("Found")
Wait = Callable[[Callable[[], bool]], None]
"""A World's way to wait until a condition is true: counts the seconds, and raises RankFailed when a rank has died."""


def _nothing() -> None:
    pass


def threaded() -> bool:
    """What HPCASYNC_PROGRESS asks for: True for a progress thread.

    Raises:
        UsageError: it is neither thread nor none.
    """
    choice = os.environ.get(OPTION, "thread")
    if choice not in ("thread", "none"):
        raise UsageError(f"{OPTION}={choice}: it is thread or none")
    return choice == "thread"


def wait(condition: Callable[[], bool], check: Callable[[], None] = _nothing) -> float:
    """Return, when ``condition()`` is true, the seconds it took.

    Looks without a pause for the first 0.1 ms, where most messages of a node arrive, then sleeps in growing steps, so
    that a rank which waits for a slow one leaves it the core. Then ``check()`` is called between two looks; it may
    raise what ends the wait.
    """
    started = time.monotonic()
    pause = 2e-5
    while not condition():
        if time.monotonic() - started < _SPIN_SECONDS:
            os.sched_yield()
        else:
            check()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    return time.monotonic() - started


def look(test: Callable[[], Found]) -> Found:
    """What ``test()`` finds, looking up to 32 times: for a message that is known to be on the wire.

    MPICH's UCX moves a few kB per call into the library: 4 MB with a pause after each took 120 ms, and 12 ms like this.
    """
    for _ in range(_LOOKS - 1):
        if found := test():
            return found
    return test()


class MPIRequest:
    """See :class:`hpcasync.world.Request`. The progress thread and the rank's own thread may both test it."""

    def __init__(self, request: MPI.Request, buffer: Tensor, wire: Tensor, wait: Wait) -> None:
        self._request, self._buffer, self._wire, self._wait = request, buffer, wire, wait
        self._lock = threading.Lock()
        self._done = self._home = False
        self._error: Exception | None = None

    def poll(self) -> bool:
        """True once the reduction is complete, or has failed, which :meth:`test` tells the rank. Any thread."""
        with self._lock:
            try:
                self._done = self._done or self._request.Test()
            except MPI.Exception as error:  # only the first Test of a request that has failed says so
                self._done, self._error = True, rank_failed(error) or error
        return self._done

    def test(self) -> bool:
        if self.poll() and self._error is not None:
            raise self._error
        if self._done and not self._home:
            if self._wire is not self._buffer:
                self._buffer.copy_(self._wire)
            self._home = True
        return self._home

    def wait(self) -> None:
        self._wait(self.test)


class Pollable(Protocol):
    """What the progress thread works on, until it says True."""

    def poll(self) -> bool: ...


class Progress:
    """A daemon thread that works on what is in flight, and that sleeps while nothing is.

    It looks again at once when something has moved, and else after pauses that grow from 0.05 ms to 1 ms.

    Args:
        threaded: False: no thread. Then the rank works on it in :meth:`poll`, and the others wait for it meanwhile.
    """

    def __init__(self, threaded: bool) -> None:
        self.threaded = threaded
        self._requests: list[Pollable] = []
        self._services: list[Callable[[], bool]] = []
        self._busy = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._round = threading.Lock()  # held while the thread works

    def add(self, request: Pollable) -> None:
        """Poll ``request`` until it is done."""
        with self._busy:
            self._requests.append(request)
            self._wake()

    def serve(self, service: Callable[[], bool]) -> None:
        """Call ``service`` until the end. It returns True when it has found something to do."""
        with self._busy:
            self._services.append(service)
            self._wake()

    def poll(self) -> bool:
        """Work once on what is in flight; True if something has moved. While another does, or may not, does nothing."""
        if not self._round.acquire(blocking=False):
            return False
        try:
            return self._work()
        finally:
            self._round.release()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The thread makes no calls into MPI meanwhile: around calls of the rank's own that block there."""
        with self._round:
            yield

    def end(self) -> None:
        with self._busy:
            self._ended = True
            self._busy.notify()
        if self._thread is not None:
            self._thread.join()

    def _wake(self) -> None:
        self._busy.notify()
        if self.threaded and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="hpcasync progress", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        pause = _SHORTEST_PAUSE_SECONDS
        while True:
            with self._busy:
                self._busy.wait_for(lambda: self._ended or bool(self._requests or self._services))
                if self._ended:
                    return
            with self._round:
                moved = self._work()
            if moved:
                pause = _SHORTEST_PAUSE_SECONDS
            else:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _work(self) -> bool:
        with self._busy:
            requests, services = list(self._requests), list(self._services)
        moved = [service() for service in services]
        done = [request for request in requests if request.poll()]
        if done:
            with self._busy:
                self._requests = [request for request in self._requests if request not in done]
        return bool(done) or any(moved)


def wire(buffer: Tensor) -> Tensor:
    """The tensor that travels for ``buffer``: itself, or float32 for half types, which MPI cannot sum."""
    if buffer.dtype in HALF_TYPES:
        return buffer.float()
    return buffer


def as_bytes(buffer: Tensor) -> Bytes:
    """The memory of ``buffer``, for verbs that pass values on as they are."""
    return buffer.detach().view(-1).view(torch.uint8).numpy()
