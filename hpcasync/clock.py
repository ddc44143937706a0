"""How far every rank has come, and how stale what it contributes is.

Stale synchronous parallel (SSP): Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter
Server", NeurIPS 2013: a rank may start its next step only while the slowest rank is at most ``bound`` steps behind.
"""

from __future__ import annotations

import math
from collections import Counter

import torch

from hpcasync.errors import UsageError
from hpcasync.world import World

_LEFT = torch.iinfo(torch.int64).max  # the clock of a rank that has made its last step: nobody waits for it


class Staleness:
    """The staleness of every contribution applied so far, as a histogram {staleness: contributions}."""

    def __init__(self) -> None:
        self.histogram: Counter[int] = Counter()
        self.last = 0

    def record(self, staleness: int) -> None:
        self.histogram[staleness] += 1
        self.last = staleness

    @property
    def count(self) -> int:
        return self.histogram.total()

    @property
    def mean(self) -> float:
        return sum(value * times for value, times in self.histogram.items()) / max(self.count, 1)

    @property
    def max(self) -> int:
        return max(self.histogram, default=0)


class Clock:
    """Every rank's number of finished steps, each in its own window, and the gate of SSP.

    A rank reads another's clock only when what it last knew of it would make it wait, so ranks in step read nothing;
    one that waits looks at the slowest rank only, until that has come near.

    Args:
        bound: how many steps the slowest rank may be behind one that starts a step; 0 is lockstep, inf never waits.

    Raises:
        UsageError: a negative bound.
    """

    def __init__(self, world: World, bound: float = math.inf) -> None:
        if not bound >= 0:
            raise UsageError(f"bound={bound}: it counts steps, so 0 or more (inf never waits)")
        self.world, self.bound = world, bound
        self._window = world.window(1, torch.int64)
        self._known = torch.zeros(world.size if bound < math.inf else 0, dtype=torch.int64)
        self._slowest_known = 0
        self.steps = 0

    def advance(self) -> None:
        """This rank has finished a step, and its contribution has arrived."""
        self.steps += 1
        self._window.local.fill_(self.steps)

    def open(self) -> bool:
        """True if this rank may start the step after its present one too, as far as it knows."""
        return self.steps + 1 - self.bound <= self._slowest_known

    def gate(self) -> None:
        """Return when this rank may start its next step: the slowest rank is at most ``bound`` behind."""
        if self.steps - self.bound > self._slowest_known:
            self._late = self._behind()
            self.world.wait_until(self._all_near)
            self._slowest_known = int(self._known.min())

    def wait_for(self, rank: int, steps: int) -> None:
        """Return when ``rank`` has finished so many steps, or has made its last one."""
        mark = torch.zeros(1, dtype=torch.int64)

        def is_there() -> bool:
            self._window.pull(mark, rank)
            self._window.flush()
            return int(mark) >= steps

        self.world.wait_until(is_there)

    def leave(self) -> None:
        """This rank has made its last step: nobody waits for it any more."""
        self._window.local.fill_(_LEFT)

    def restore(self, steps: int) -> None:
        """Set this rank's clock, for example from a checkpoint; the others may have set theirs, too."""
        self.steps = steps
        self._known.zero_()
        self._slowest_known = 0
        self._window.local.fill_(steps)

    def _behind(self) -> list[int]:
        """The ranks that would make this one wait, by what it knows of them; the slowest is the last."""
        late = (self._known < self.steps - self.bound).nonzero().view(-1)
        order = self._known[late].argsort(descending=True)
        ranks: list[int] = late[order].tolist()
        return ranks

    def _all_near(self) -> bool:
        while self._late:
            self._read(self._late[-1:])
            if int(self._known[self._late[-1]]) < self.steps - self.bound:
                return False
            self._read(self._late)
            self._late = self._behind()
        return True

    def _read(self, ranks: list[int]) -> None:
        for rank in ranks:
            self._window.pull(self._known[rank : rank + 1], rank)
        self._window.flush()
