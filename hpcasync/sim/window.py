"""Windows of simulated ranks. Buffers in flight read NaN; what a message does to memory, it does in one piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.sim.buffers import check_buffer, hide
from hpcasync.sim.events import Rank, Source
from hpcasync.sim.group import Group
from hpcasync.world import RankFailed, WorldError

_Act = Callable[[Tensor, Tensor], None]  # (span of the target's memory, value) -> None


def _add(span: Tensor, value: Tensor) -> None:
    span.add_(value)


def _read(span: Tensor, value: Tensor) -> None:
    value.copy_(span)


def _take(span: Tensor, value: Tensor) -> None:
    value.copy_(span)
    span.zero_()


class Part(Source):
    """One rank's part of a window. Its owner writes there unseen, so watched memory is compared with what it was."""

    def __init__(self, owner: Rank, length: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.owner = owner
        self.memory = torch.zeros(length, dtype=dtype)
        self._seen = torch.empty(0, dtype=torch.uint8)  # the memory's bytes when it was last looked at

    def watch(self, rank: Rank) -> None:
        if not self.watchers:
            self._seen = self.memory.view(torch.uint8).clone()
            self.owner.watched[self] = None
        super().watch(rank)

    def changed(self) -> None:
        self.owner.watched.pop(self, None)
        super().changed()

    def check(self) -> None:
        """Wake the watchers if a byte has changed (bytes, for NaN differs from itself)."""
        if not self.watchers:
            self.owner.watched.pop(self, None)
        elif not torch.equal(self.memory.view(torch.uint8), self._seen):
            self.changed()


@dataclass(eq=False)
class _Operation:
    """A push, pull or take on its way. ``value``: what is pushed, or what has been read."""

    act: _Act
    buffer: Tensor
    value: Tensor
    part: Part
    span: Tensor
    target: int
    done: bool = False


class SimWindow:
    """A window of a simulated World; see :class:`hpcasync.world.Window`.

    A push lands alpha + beta · bytes after it was called, a pull or take reads after alpha and is back alpha +
    beta · bytes later; what a rank sends leaves one message after another. Operations on one's own part are free.

    Raises:
        UsageError: a rank, offset, length, dtype or layout that does not fit.
        RankFailed: the target is dead, or the World was shrunk. The sources of pushes are restored all the same.
    """

    def __init__(self, group: Group, index: int, parts: list[Part]) -> None:
        self._group, self._index, self._parts = group, index, parts
        self._me = group.ranks[index]
        self._pending: list[_Operation] = []
        self._open: set[_Operation] = set()
        self._freed = False

    @property
    def local(self) -> Tensor:
        part = self._parts[self._index]
        if self._me.watch is not None:
            self._me.watch.sources[part] = None
        return part.memory

    def push(self, source: Tensor, rank: int, offset: int = 0) -> None:
        span = self._begin("push", source, rank, offset)
        if self._me.watch is not None:
            self._act_in_condition(_add, span, source, rank)
            return
        operation = self._start(_add, source, self._me.loans.lend(source), span, rank)
        arrival = self._me.simulation.time
        if rank != self._index:
            arrival = self._me.send(source.nbytes)
        self._me.simulation.deliver(arrival, partial(self._land, operation))

    def pull(self, target: Tensor, rank: int, offset: int = 0) -> None:
        self._fetch(_read, "pull", target, rank, offset)

    def take(self, target: Tensor, rank: int, offset: int = 0) -> None:
        self._fetch(_take, "take", target, rank, offset)

    def near(self, rank: int) -> bool:
        return False  # messages, even to the own part

    def test(self) -> bool:
        self._me.enter()
        self._group.check_revoked()
        self._check_targets()
        return not self._open

    def flush(self) -> None:
        me = self._me
        me.enter()
        if me.watch is not None:
            return  # what a condition begins is complete at once
        try:
            self._group.check_revoked()
            if self._pending:
                me.sleep(0.0)  # the others' turn, even if messages cost nothing
            while self._open:
                self._check_targets()
                me.pause(self._describe)
        finally:
            self._return_buffers()

    def free(self) -> None:
        self._me.enter()
        self._group.wait(
            self._index, self._group.join(self._index, "free", None, lambda _: None, seconds=self._group.latency)
        )
        self._freed = True

    def _begin(self, verb: str, buffer: Tensor, rank: int, offset: int) -> Tensor:
        """Check everything; the span of the target's memory that is meant."""
        self._me.enter()
        self._group.check_revoked()
        if self._freed:
            raise WorldError(f"{verb}: the window was freed")
        if not 0 <= rank < self._group.size:
            raise UsageError(f"{verb}: rank {rank} is not one of 0 to {self._group.size - 1}")
        if rank in self._group.known_dead:
            raise RankFailed(tuple(sorted(self._group.known_dead)))
        check_buffer(buffer, verb)
        memory = self._parts[rank].memory
        if buffer.dtype != memory.dtype:
            raise UsageError(f"{verb}: a buffer of {buffer.dtype} for a window of {memory.dtype}")
        if buffer.dim() > 1 or not 0 <= offset <= memory.numel() - buffer.numel():
            raise UsageError(
                f"{verb}: a buffer of shape {tuple(buffer.shape)} at offset {offset} does not fit into "
                f"rank {rank}'s part of shape ({memory.numel()},)"
            )
        return memory[offset : offset + buffer.numel()].view_as(buffer)

    def _fetch(self, act: _Act, verb: str, target: Tensor, rank: int, offset: int) -> None:
        span = self._begin(verb, target, rank, offset)
        if self._me.watch is not None:
            self._act_in_condition(act, span, target, rank)
            return
        operation = self._start(act, target, hide(target), span, rank)
        simulation = self._me.simulation
        request = 0.0 if rank == self._index else simulation.alpha
        simulation.deliver(simulation.time + request, partial(self._land, operation))

    def _act_in_condition(self, act: _Act, span: Tensor, buffer: Tensor, rank: int) -> None:
        """At once: a condition is looked at in no time. wait_until charges alpha when it has come true."""
        assert self._me.watch is not None
        part = self._parts[rank]
        act(span, buffer.data)
        part.check()
        self._me.watch.sources[part] = None
        self._me.watch.remote |= rank != self._index

    def _start(self, act: _Act, buffer: Tensor, value: Tensor, span: Tensor, rank: int) -> _Operation:
        operation = _Operation(act, buffer, value, self._parts[rank], span, rank)
        self._pending.append(operation)
        self._open.add(operation)
        return operation

    def _land(self, operation: _Operation) -> None:
        """The message is at the target. What comes to a dead rank is lost, and flush() never sees it done."""
        owner = operation.part.owner
        if owner.dead:
            return
        operation.act(operation.span, operation.value)
        operation.part.check()
        if operation.act is _add or owner is self._me:
            self._complete(operation)
        else:
            arrival = owner.send(operation.value.nbytes)
            owner.simulation.deliver(arrival, partial(self._complete, operation))

    def _complete(self, operation: _Operation) -> None:
        operation.done = True
        self._open.discard(operation)
        if not self._open:
            self._me.wake()

    def _check_targets(self) -> None:
        self._group.check_revoked()
        if any(operation.target in self._group.known_dead for operation in self._open):
            raise RankFailed(tuple(sorted(self._group.known_dead)))

    def _return_buffers(self) -> None:
        for operation in self._pending:
            if operation.act is _add:
                self._me.loans.give_back(operation.buffer)
            elif operation.done:
                operation.buffer.data.copy_(operation.value)
        self._pending.clear()
        self._open.clear()

    def _describe(self) -> str:
        targets = sorted({operation.target for operation in self._open})
        return f"flush (on their way to: rank {', '.join(map(str, targets))})"
