"""Simulated ranks as greenlets, and the one hub that resumes them in the order of a virtual clock.

Events are ordered by (time, a random draw from the simulation's seed, sequence number), so events of one moment come in
an order that is arbitrary and yet the same for the same seed. The hub is the greenlet that called
:meth:`Simulation.run`; ranks switch to it and it to them, never a rank to a rank. An event costs O(log events waiting).
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from greenlet import GreenletExit, getcurrent, greenlet  # type: ignore[import-untyped]

from hpcasync.laws import Law
from hpcasync.sim.buffers import Loans
from hpcasync.sim.timetable import Timetable
from hpcasync.world import Deadlock, WorldError

DETECTION_SECONDS = 0.1  # from a death until the survivors hear of it; Open MPI's ULFM takes 0.01 to 0.15
_CALLS_AT_ONE_TIME = 1_000_000  # a rank that makes more calls than this while its clock stands still polls
_NAMED = 16  # ranks named in a Deadlock's message


class Source:
    """Something that paused ranks watch: they are woken when it changes."""

    def __init__(self) -> None:
        self.watchers: dict[Rank, None] = {}  # in the order they came

    def watch(self, rank: Rank) -> None:
        self.watchers[rank] = None

    def unwatch(self, rank: Rank) -> None:
        self.watchers.pop(rank, None)

    def changed(self) -> None:
        watchers, self.watchers = self.watchers, {}
        for rank in watchers:
            rank.wake()

    def check(self) -> None:
        """Call :meth:`changed` if it has changed without anyone's saying so."""


class Watch:
    """What one evaluation of a condition has read."""

    def __init__(self) -> None:
        self.sources: dict[Source, None] = {}
        self.remote = False  # another rank's memory
        self.clock = False


class Rank:
    """One simulated rank: its greenlet, its random numbers, its counters, and what it is doing."""

    is_agent = False

    def __init__(self, simulation: Simulation, number: int) -> None:
        self.simulation, self.number = simulation, number
        self.rng = np.random.default_rng([simulation.seed, number])
        self.greenlet: Any = None
        self.result: Any = None
        self.dies_at_call = self.dies_in_step = 0
        self.calls = self.steps = self.sent_bytes = 0
        self.waited = 0.0
        self.dead = False
        self.fate: BaseException | None = None  # what every further call raises: it has died, or all is over
        self.watch: Watch | None = None  # set while a condition is being evaluated
        self.in_condition_wait = False
        self.loans = Loans()
        self.watched: dict[Source, None] = {}  # memory of its own that others watch; only it can write there unseen
        self.on_detection: list[Callable[[], None]] = []
        self.agents: list[Rank] = []  # see hpcasync.sim.agent
        self._waiting = False
        self._waits_for: Callable[[], str] = str
        self._link_free = 0.0
        self._moved, self._calls_before = 0.0, 0

    def enter(self) -> None:
        """Every verb begins here. Raises if this rank is no more, and counts the call; it may be the rank's last."""
        if self.fate is not None:
            raise self.fate
        if self.watch is not None:
            return  # how often a condition is evaluated is the simulation's business: not counted
        self.calls += 1
        if self.calls == self.dies_at_call:
            self.die()
        simulation = self.simulation
        if simulation.time > self._moved:
            self._moved, self._calls_before = simulation.time, self.calls
        elif self.calls - self._calls_before > _CALLS_AT_ONE_TIME:
            raise WorldError(
                f"rank {self.number} polls at {simulation.time:g} s: its clock stands still; use wait_until"
            )
        simulation.stir()

    def send(self, size_bytes: int) -> float:
        """The time at which a message that leaves now arrives. Messages of one rank leave one after another."""
        simulation = self.simulation
        self._link_free = max(self._link_free, simulation.time) + simulation.beta * size_bytes
        self.count_sent(size_bytes)
        return self._link_free + simulation.alpha

    def count_sent(self, size_bytes: int) -> None:
        self.sent_bytes += size_bytes

    def sleep(self, seconds: float) -> None:
        """Let the others run for ``seconds``. Nothing wakes this rank earlier."""
        self._forbid_in_condition()
        self.simulation.at(self.simulation.time + seconds, self.resume)
        self._switch()

    def pause(self, waits_for: Callable[[], str]) -> None:
        """Let the others run until somebody calls :meth:`wake`, perhaps for another reason: look again afterwards."""
        self._forbid_in_condition()
        self._waiting, self._waits_for = True, waits_for
        began = self.simulation.time
        try:
            self._switch()
        finally:
            self.waited += self.simulation.time - began

    def wake(self) -> None:
        if self._waiting:
            self._waiting = False
            self.simulation.at(self.simulation.time, self.resume)

    def resume(self) -> None:
        """Hub only: run this rank until it switches back."""
        if not self.greenlet.dead:
            self.greenlet.switch()
            self.simulation.came_back(self)

    def die(self) -> None:
        """Die now, wherever this rank stands. The survivors hear of it DETECTION_SECONDS later."""
        if self.greenlet.dead:
            return
        self._perish()
        for agent in self.agents:
            agent._perish()
            agent.fate = GreenletExit()  # whatever it may still do at this moment
            self.simulation.at(self.simulation.time, agent.stop)
        self.end(GreenletExit())

    def stop(self) -> None:
        """Hub only: unwind, if this rank has begun and not come to its end."""
        if self.greenlet is not None and not self.greenlet.dead:
            self.end(GreenletExit())

    def end(self, fate: BaseException) -> None:
        """Raise ``fate`` where this rank stands, and again from every verb it calls while it unwinds."""
        self.fate, self._waiting = fate, False
        if getcurrent() is self.greenlet:
            raise fate
        self.greenlet.throw(fate)
        self.simulation.came_back(self)

    def __str__(self) -> str:
        if self.greenlet.dead:
            return f"rank {self.number} ({'dead' if self.dead else 'returned'})"
        return f"rank {self.number}"

    @property
    def plea(self) -> str | None:
        """What this rank waits for, in words; None if it does not wait."""
        return f"{self} waits in {self._waits_for()}" if self._waiting else None

    def _perish(self) -> None:
        self.dead = True
        self.simulation.at(self.simulation.time + DETECTION_SECONDS, self._detected)

    def _detected(self) -> None:
        for tell in self.on_detection:
            tell()

    def _forbid_in_condition(self) -> None:
        if self.watch is not None:
            raise WorldError(f"rank {self.number}: a condition of wait_until may look, but not wait or compute")

    def _switch(self) -> None:
        # PyTorch keeps the grad and inference modes per thread, and all ranks share this one. The guard puts the thread
        # into the default state for the others, and this rank's own state back when it goes on.
        with torch.inference_mode(False):
            self.simulation.hub.switch()


class Simulation:
    """The virtual clock, the heap of events and the ranks.

    Args:
        alpha: seconds per message.
        beta: seconds per byte.
    """

    def __init__(self, size: int, law: Law | Timetable, alpha: float, beta: float, seed: int) -> None:
        self.law, self.alpha, self.beta, self.seed = law, alpha, beta, seed
        self.time = 0.0
        self.hub: Any = None
        self.anything = Source()  # watched by those whose condition reads nothing that could be traced
        self.ranks = [Rank(self, number) for number in range(size)]
        self._ties = random.Random(seed)
        self._sequence = itertools.count()
        self._heap: list[tuple[float, float, int, Callable[[], None]]] = []
        self._running = size
        self._stirred = self._reconsidered = 0
        self._failure: BaseException | None = None

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Call ``action`` in the hub at ``time``."""
        heapq.heappush(self._heap, (time, self._ties.random(), next(self._sequence), action))

    def deliver(self, time: float, action: Callable[[], None]) -> None:
        """Call ``action`` at ``time``, at once if that is now: a message that costs nothing lands immediately."""
        if time > self.time:
            self.at(time, action)
        else:
            action()

    def stir(self) -> None:
        """Some rank goes on: whatever the others cannot see may have changed."""
        self._stirred += 1
        self.anything.changed()

    def came_back(self, rank: Rank) -> None:
        for source in tuple(rank.watched):
            source.check()
        if rank.greenlet.dead and not rank.is_agent:
            self._running -= 1
            self.stir()

    def run(self, mains: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run ``mains[r]`` as rank r until all have returned or died; what they returned, None for the dead.

        Raises:
            Deadlock: all ranks left wait; also raised in each of them.
            BaseException: what a rank raised first, with a note that names the rank.
        """
        self.hub = getcurrent()
        for rank, main in zip(self.ranks, mains, strict=True):
            rank.greenlet = greenlet(partial(self.live, rank, main))
            self.at(0.0, rank.resume)
        with torch.inference_mode(False):  # ranks begin in the default modes, whatever the caller's
            try:
                while self._running:
                    self._next()
            finally:
                for rank in self.ranks:
                    for each in (rank, *rank.agents):
                        each.stop()
        return [rank.result for rank in self.ranks]

    def _next(self) -> None:
        if not self._heap and not self._reconsider():
            self._deadlock()
        self.time, _, _, action = heapq.heappop(self._heap)
        action()
        if self._failure is not None:
            raise self._failure

    def live(self, rank: Rank, main: Callable[[], Any]) -> None:
        with torch.inference_mode(False):  # a rank that ends inside no_grad() leaves the thread as it was
            try:
                result = main()
                if rank.fate is None:
                    rank.result = result
            except BaseException as error:
                if rank.fate is None:  # else it only unwinds
                    error.add_note(f"raised by simulated rank {rank.number} at {self.time:g} s of virtual time")
                    self._failure = error

    def _reconsider(self) -> bool:
        """Before giving up: let every condition be looked at once more, for it may read what could not be traced."""
        if self._reconsidered == self._stirred:
            return False
        self._reconsidered = self._stirred
        for rank in self.ranks:
            if rank.in_condition_wait:
                rank.wake()
        return bool(self._heap)

    def _deadlock(self) -> NoReturn:
        waiting = [rank for rank in self.ranks if rank.plea is not None]
        pleas = [str(rank.plea) for rank in waiting[:_NAMED]]
        more = f"; and {len(waiting) - _NAMED} more" if len(waiting) > _NAMED else ""
        message = f"nobody can go on at {self.time:g} s: {'; '.join(pleas)}{more}"
        for rank in waiting:
            rank.end(Deadlock(message))
        raise Deadlock(message)
