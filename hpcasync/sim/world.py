"""The World of a simulated rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.partial import PartialRounds
from hpcasync.sim.agent import Agent
from hpcasync.sim.buffers import check_buffer, hide
from hpcasync.sim.events import Rank, Watch
from hpcasync.sim.group import Collective, Group
from hpcasync.sim.timetable import Timetable
from hpcasync.sim.window import Part, SimWindow
from hpcasync.world import HALF_TYPES, Quorum, WorldError

T = TypeVar("T")

_POLL_SECONDS = 1e-3  # how often a condition that reads the clock is looked at


class SimRequest:
    """A collective in flight; see :class:`hpcasync.world.Request`. ``deliver`` is given its result, once."""

    def __init__(self, group: Group, index: int, collective: Collective, deliver: Callable[[Any], object]) -> None:
        self._group, self._index, self._collective = group, index, collective
        self._give: Callable[[Any], object] | None = deliver

    def test(self) -> bool:
        me = self._group.ranks[self._index]
        me.enter()
        if me.watch is not None:
            me.watch.sources[self._collective] = None
        if self._collective.done:
            self._deliver()
        elif not self._collective.full:
            self._group.check_alive()
        return self._collective.done

    def wait(self) -> None:
        self._group.ranks[self._index].enter()
        self.finish()

    def finish(self) -> None:
        """``wait()`` as part of another verb: not a call of its own."""
        self._group.wait(self._index, self._collective)
        self._deliver()

    def _deliver(self) -> None:
        if self._give is not None:
            self._give(self._collective.result)
            self._give = None


class SimWorld:
    """What a simulated rank may ask of the others; see :class:`hpcasync.world.World`.

    With n ranks a collective is done, counted from when the last of them has come, after the two lower bounds of its
    cost added up (Chan et al., "Collective communication: theory, practice, and experience", 2007, table 1):

        allreduce               alpha · ceil(log2 n) + 2 beta · bytes · (n - 1) / n
        alltoall, allgather     alpha · ceil(log2 n) + beta · bytes · (n - 1) / n    (of the longer buffer)
        broadcast               alpha · ceil(log2 n) + beta · bytes          (n > 1)
        every other             alpha · ceil(log2 n)

    Sums are taken in the order of the ranks. Only ``allreduce``, ``wait``, ``partial``, ``broadcast``, ``barrier``,
    ``window``, ``shared``, ``wait_until``, ``computed``, ``flush``, ``free``, ``shrink`` and ``close`` let other ranks
    run; the other verbs may be called inside ``backward()``.
    """

    def __init__(self, group: Group, index: int) -> None:
        self.rank, self.size, self.node = index, group.size, group.nodes[index]
        self._group = group
        self._me: Rank = group.ranks[index]
        self._closed = False

    @property
    def waited(self) -> float:
        """Virtual seconds this rank has spent blocked in verbs, in all its Worlds."""
        return self._me.waited

    @property
    def can_wait_in_backward(self) -> bool:
        return self.size == 1

    @property
    def sent_bytes(self) -> int:
        """What this rank has sent: pushes, answers to pulls and takes, and its share of the collectives."""
        return self._me.sent_bytes

    def allreduce(self, buffer: Tensor) -> None:
        self._enter()
        self._reduce(buffer).finish()

    def iallreduce(self, buffer: Tensor) -> SimRequest:
        self._enter()
        return self._reduce(buffer)

    def ialltoall(self, source: Tensor, target: Tensor) -> SimRequest:
        if source.numel() % self.size or target.numel() != source.numel():
            raise UsageError(
                f"alltoall: {_describe(source)} to {_describe(target)}; both are one slice per rank, here {self.size}"
            )
        length = source.numel() // self.size
        start, stop = self.rank * length, (self.rank + 1) * length
        return self._exchange("alltoall", source, target, lambda sent: sent.view(-1)[start:stop])

    def iallgather(self, source: Tensor, target: Tensor) -> SimRequest:
        if target.numel() != self.size * source.numel():
            raise UsageError(f"allgather: {_describe(source)} from each of {self.size} ranks to {_describe(target)}")
        return self._exchange("allgather", source, target, lambda sent: sent.view(-1))

    def partial(self, like: Sequence[Tensor], quorum: Quorum, bound: int) -> PartialRounds:
        self._enter()
        verb = f"partial of {', '.join(map(_describe, like))} with {quorum} and bound {bound}"
        agent = Agent(self._me)
        channel = SimWorld(self._collective(verb, agent, self._group.beside), self.rank)
        rounds = PartialRounds(channel, like, quorum, bound, lambda _: agent.wake())
        agent.start(rounds, channel)
        return rounds

    def broadcast(self, buffer: Tensor, root: int = 0) -> None:
        self._enter()
        if not 0 <= root < self.size:
            raise UsageError(f"broadcast: root {root} is not one of 0 to {self.size - 1}")
        check_buffer(buffer, "broadcast")
        mine = buffer.data.clone() if self.rank == root else None
        verb = f"broadcast of {_describe(buffer)} from rank {root}"
        seconds = self._me.simulation.beta * buffer.nbytes if self.size > 1 else 0.0
        value = self._collective(verb, mine, lambda values: values[root], seconds)
        buffer.data.copy_(value)
        self._me.count_sent(buffer.nbytes * (self.size - 1) // self.size)

    def barrier(self) -> None:
        self._enter()
        self._collective("barrier", None, _nothing)

    def window(self, length: int, dtype: torch.dtype = torch.float32) -> SimWindow:
        self._enter()
        _check_length(length, "window")
        part = Part(self._me, length, dtype)
        return SimWindow(self._group, self.rank, self._collective(f"window of {dtype}", part, list))

    def buffer(self, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(length, dtype=dtype)

    def shared(self, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
        self._enter()
        _check_length(length, "shared")
        mine = torch.zeros(length, dtype=dtype) if self.node.rank == 0 else None
        memories: list[Tensor] = self._collective(f"shared of {length} {dtype}", mine, list)
        return memories[self.node.leader]

    def leaders(self) -> SimWorld | None:
        self._enter()
        first = sorted({node.leader for node in self._group.nodes})
        ranks = [self._group.ranks[index] for index in first]
        group = self._collective("leaders", None, lambda _: self._group.beside(ranks))
        return SimWorld(group, first.index(self.rank)) if self.node.rank == 0 else None

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when ``condition()`` is true.

        The condition is looked at when something it has read changes: parts of windows (pulled or ``local``) and
        requests (``test``). If it reads none of these, it is looked at whenever any rank has made a call; if it reads
        ``now``, every millisecond as well. Looking takes no time: pulls, pushes and takes inside the condition are
        complete at once and need no flush. When it has come true after reading another rank's memory, alpha is
        charged, once.

        Raises:
            RankFailed: the condition is false, and a rank of this World has died.
        """
        self._enter()
        me = self._me
        watch = Watch()
        try:
            while not self._under(watch, condition):
                self._group.check_alive()
                self._watch(watch)
                me.in_condition_wait = True
                me.pause(partial(_name, condition))
                self._unwatch(watch)
        finally:
            me.in_condition_wait = False
            self._unwatch(watch)
        if watch.remote and me.watch is None:
            me.sleep(me.simulation.alpha)
            me.waited += me.simulation.alpha

    def look(self, function: Callable[[], T]) -> T:
        """What ``function()`` returns. It takes no time, and no other rank runs: pulls in it are complete at once.

        For an observer: :meth:`Strategy.result`, say, without the cost of its messages. It may not wait.
        """
        return self._under(Watch(), function)

    def computed(self, seconds: float) -> None:
        """Let the virtual clock run by the next draw from the compute law, in seconds. The argument is ignored."""
        self._enter()
        me = self._me
        law = me.simulation.law
        if isinstance(law, Timetable):
            draw = law.seconds_left(me.number, me.steps, me.simulation.time)
        else:
            draw = law.draw(me.rng, me.number, me.steps)
        if not draw > 0:
            raise UsageError(f"{law} drew {draw}: a compute time is above 0")
        me.steps += 1
        me.sleep(draw)
        if me.steps == me.dies_in_step:
            me.die()

    def now(self) -> float:
        if self._me.watch is not None:
            self._me.watch.clock = True
        return self._me.simulation.time

    def shrink(self) -> SimWorld:
        """See :meth:`hpcasync.world.World.shrink`. From the first call on, all other verbs of this World, its windows
        and requests raise RankFailed, so that every survivor comes here; memory of its windows stays readable."""
        self._me.enter()
        return SimWorld(*self._group.shrink(self.rank))

    def close(self) -> None:
        self._enter()
        self._collective("close", None, _nothing)
        self._closed = True

    def _enter(self) -> None:
        self._me.enter()
        if self._closed:
            raise WorldError(f"rank {self.rank}: this World was closed")
        self._group.check_revoked()

    def _collective(self, verb: str, payload: Any, combine: Callable[[list[Any]], Any], seconds: float = 0.0) -> Any:
        collective = self._group.join(self.rank, verb, payload, combine, self._group.latency + seconds)
        self._group.wait(self.rank, collective)
        return collective.result

    def _reduce(self, buffer: Tensor) -> SimRequest:
        check_buffer(buffer, "allreduce")
        if buffer.dtype == torch.bool:
            raise UsageError("allreduce: a buffer of torch.bool has no sum; use an integer dtype")
        self._group.check_alive()
        passed_on_bytes = 2 * buffer.nbytes * (self.size - 1) / self.size
        seconds = self._group.latency + self._me.simulation.beta * passed_on_bytes
        collective = self._group.join(self.rank, f"allreduce of {_describe(buffer)}", hide(buffer), _sum, seconds)
        self._me.count_sent(int(passed_on_bytes))
        return SimRequest(self._group, self.rank, collective, buffer.data.copy_)

    def _exchange(self, verb: str, source: Tensor, target: Tensor, mine: Callable[[Tensor], Tensor]) -> SimRequest:
        """Every rank gets ``mine`` of what each rank has sent, in the order of the ranks."""
        self._enter()
        for buffer in (source, target):
            check_buffer(buffer, verb)
        if source.dtype != target.dtype:
            raise UsageError(f"{verb}: a target of {target.dtype} for a source of {source.dtype}")
        self._group.check_alive()
        passed_on_bytes = target.nbytes * (self.size - 1) // self.size
        seconds = self._group.latency + self._me.simulation.beta * passed_on_bytes
        sent = hide(source)
        hide(target)
        collective = self._group.join(self.rank, f"{verb} of {_describe(source)}", sent, list, seconds)
        self._me.count_sent(passed_on_bytes)

        def deliver(everyone: list[Tensor]) -> None:
            source.data.copy_(sent)
            torch.cat([mine(each) for each in everyone], out=target.data.view(-1))

        return SimRequest(self._group, self.rank, collective, deliver)

    def _under(self, watch: Watch, look: Callable[[], T]) -> T:
        """What ``look()`` returns; ``watch`` then holds what it has read."""
        watch.sources.clear()
        watch.remote = watch.clock = False
        outer, self._me.watch = self._me.watch, watch
        try:
            return look()
        finally:
            self._me.watch = outer

    def _watch(self, watch: Watch) -> None:
        simulation = self._me.simulation
        if watch.clock:
            simulation.at(simulation.time + _POLL_SECONDS, self._me.wake)
        if not watch.sources:
            watch.sources[simulation.anything] = None
        for source in watch.sources:
            source.watch(self._me)

    def _unwatch(self, watch: Watch) -> None:
        for source in watch.sources:
            source.unwatch(self._me)


def _sum(values: list[Tensor]) -> Tensor:
    """In the order of the ranks, half types in float32."""
    total = values[0].to(torch.float32 if values[0].dtype in HALF_TYPES else values[0].dtype)
    for value in values[1:]:
        total += value
    return total


def _nothing(values: list[None]) -> None:
    """A collective that brings nothing but everybody's having come."""


def _check_length(length: int, verb: str) -> None:
    if length < 0:
        raise UsageError(f"{verb}: a length of {length}; it is 0 or more")


def _describe(buffer: Tensor) -> str:
    return f"{buffer.numel()} {buffer.dtype}"


def _name(condition: Callable[[], bool]) -> str:
    code = getattr(condition, "__code__", None)
    place = f", line {code.co_firstlineno} of {code.co_filename}" if code else ""
    return f"wait_until({getattr(condition, '__qualname__', repr(condition))}{place})"
