"""How one message per rank becomes the same result on every rank: a sum, unless a reduction makes something else of it.

A reduction is a sequence of stages. In each, collectives are in flight; when they are complete, the rank computes
between this stage and the next. So whoever waits decides when: at once (``sync``), some steps later (``stale``), or
whenever the World has time for it (partial allreduces).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hpcasync.replica import Flat, Span
from hpcasync.world import Stages, World


@dataclass(frozen=True)
class Layout:
    """What a message is made of: ``length`` elements, without the count behind them, and the tensors that lie there."""

    length: int
    dtype: torch.dtype
    spans: Sequence[Span]

    @classmethod
    def of(cls, flat: Flat, start: int = 0, stop: int | None = None) -> Layout:
        """Of elements [start, stop) of ``flat``; a tensor that reaches beyond them is no tensor of the message."""
        stop = flat.memory.numel() if stop is None else stop
        inside = [span for span in flat.spans if start <= span.start and span.stop <= stop]
        spans = [replace(span, start=span.start - start, stop=span.stop - start) for span in inside]
        return cls(stop - start, flat.memory.dtype, spans)


class Reduction:
    """The sum over the ranks, element by element. Subclasses reduce in another way.

    A message is a gradient (or whatever a strategy sums) with one element behind it, of which the first message's is
    the number of contributions in it; see :class:`hpcasync.replica.Pair`.
    """

    has_more_stages = False  # than one

    def stages(self, world: World, messages: Sequence[Tensor]) -> Stages:
        """Begin to reduce ``messages`` [(n_i + 1,), ...], one per dtype; each ``next`` begins the next stage.

        To be called by all ranks in the same order. When there is no next stage, the messages hold the result. Until
        then they are not the caller's.
        """
        yield [world.iallreduce(message) for message in messages]

    def whole(self, world: World, messages: Sequence[Tensor]) -> None:
        """All stages at once: returns with the result in ``messages``."""
        for message in messages:
            world.allreduce(message)

    def state_dict(self) -> dict[str, Any]:
        """What the next reductions need of the earlier ones."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the reduction whose :meth:`state_dict` this is."""


class StagedReduction(Reduction):
    """A reduction of more than one stage."""

    has_more_stages = True

    def whole(self, world: World, messages: Sequence[Tensor]) -> None:
        for requests in self.stages(world, messages):
            for request in requests:
                request.wait()


def together(reductions: Iterable[Stages]) -> Stages:
    """Several reductions with equally many stages as one: stage by stage, in the order given."""
    for stage in zip(*reductions, strict=True):
        yield [request for requests in stage for request in requests]


class InFlight:
    """A reduction in flight, its first stage begun."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._requests = next(stages, None)

    def advance(self) -> None:
        """Wait for the stage that is in flight, and begin the next, if there is one."""
        if self._requests is not None:
            for request in self._requests:
                request.wait()
            self._requests = next(self._stages, None)

    def wait(self) -> None:
        """Return when the messages hold the result."""
        while self._requests is not None:
            self.advance()
