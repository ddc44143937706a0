"""One simulated training: a strategy with one learning rate, until the tolerance or a limit is reached."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from hpcasync.laws import Law
from hpcasync.replica import Replica
from hpcasync.sim import SimWorld, simulate
from hpcasync.simulate.problems import Problem
from hpcasync.strategies import Choice, Strategy

DIVERGED = 1e3  # times the distance at the start
_ROUNDING = 1e-9  # seconds: a step that should end with the last second counts
LOOKS = 8  # how often f is computed while every rank makes one step, if it is not more often than it can change


@dataclass(frozen=True)
class Setting:
    """What is simulated.

    Attributes:
        until: the tolerance: x is good enough when f - f* is at most this share of what it was at the start.
        seconds: virtual; nobody goes on after them.
        alpha, beta: seconds per message, and per byte of a message.
        ranks_per_node: consecutive ranks that share a node; None: all of them.
    """

    problem: Problem
    ranks: int
    law: Law
    choice: Choice
    until: float | None
    seconds: float
    alpha: float = 0.0
    beta: float = 0.0
    momentum: float = 0.0
    seed: int = 0
    ranks_per_node: int | None = None

    def within(self, seconds: float) -> Setting:
        """The same, ended after ``seconds``."""
        return replace(self, seconds=seconds)


@dataclass
class Outcome:
    """What has become of it.

    Attributes:
        seconds_to_tolerance: virtual; None if the tolerance was not reached.
        seconds: virtual, in all.
        gap: (f - f*) / (f(x0) - f*) when it was last looked at; infinite after divergence.
        steps: gradients that the ranks have computed.
        updates: changes of the parameters; ranks that all make the same update make one.
        waited: seconds that a rank has waited, mean over the ranks.
        staleness: {staleness: contributions applied}.
        dropped: contributions computed and not applied.
        cpu_seconds: processor time that simulating it took, from the ranks' first step on.
    """

    seconds_to_tolerance: float | None = None
    seconds: float = 0.0
    gap: float = 1.0
    steps: int = 0
    updates: int = 0
    waited: float = 0.0
    staleness: Counter[int] = field(default_factory=Counter)
    dropped: int = 0
    cpu_seconds: float = field(default=0.0, compare=False)

    @property
    def diverged(self) -> bool:
        return math.isinf(self.gap)


class _Over(Exception):  # noqa: N818 -- not an error
    """The simulation has shown what it was to show: all ranks end where they are."""


class _Variables(nn.Module):
    """A model that is one vector x (d,)."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(start.clone())


class Trial:
    """A training that is being simulated.

    Args:
        tell: called now and then with (virtual seconds, gap).
    """

    def __init__(self, setting: Setting, lr: float, tell: Callable[[float, float], object]) -> None:
        self._setting, self._lr, self._tell = setting, lr, tell
        self._outcome = Outcome()
        self._looks_every = -(-setting.ranks // LOOKS)
        self._ranks: list[Strategy] = []
        self._updates = [0] * setting.ranks
        self._began = self._cpu_began = 0.0  # the ranks' first step: what came before is not part of the training
        self._waited = [0.0] * setting.ranks

    def run(self) -> Outcome:
        """Simulate to the end."""
        setting = self._setting
        try:
            simulate(
                self._train,
                setting.ranks,
                compute=setting.law,
                alpha=setting.alpha,
                beta=setting.beta,
                seed=setting.seed,
                ranks_per_node=setting.ranks_per_node,
            )
        except _Over:
            self._conclude()
        return self._outcome

    def _train(self, world: SimWorld) -> None:
        """One rank's life."""
        setting, problem = self._setting, self._setting.problem
        model = _Variables(torch.from_numpy(problem.start))
        replica = Replica(model)
        optimizer = torch.optim.SGD(replica.parameters(), lr=self._lr, momentum=setting.momentum)
        strategy = setting.choice.build(replica, world, optimizer)
        strategy.finite_check.mode = "allow"  # what diverges is found out by the gap
        self._ranks.append(strategy)
        self._began, self._cpu_began = max(self._began, world.now()), time.process_time()
        waited_before = world.waited
        optimizer.register_step_post_hook(lambda *_: self._note_update(world))
        rng = np.random.default_rng((setting.seed, world.rank, 1))  # world.computed() draws from another
        with np.errstate(all="ignore"):  # what diverges is found out below
            while True:
                gradient = problem.gradient(model.x.detach().numpy(), world.rank, rng)
                world.computed(0.0)  # before backward(), where some strategies send what it took this time to compute
                model.x.backward(torch.from_numpy(gradient))  # type: ignore[no-untyped-call]
                self._check_time(world)
                strategy.step()
                self._check_time(world)
                self._waited[world.rank] = world.waited - waited_before
                self._note_step(world, strategy)

    def _seconds(self, world: SimWorld) -> float:
        return world.now() - self._began

    def _check_time(self, world: SimWorld) -> None:
        if self._seconds(world) > self._setting.seconds + _ROUNDING:
            self._outcome.seconds = self._setting.seconds
            raise _Over

    def _note_step(self, world: SimWorld, strategy: Strategy) -> None:
        outcome, setting, now = self._outcome, self._setting, self._seconds(world)
        outcome.seconds = now
        outcome.steps += 1
        if outcome.steps % self._looks_every:
            return
        gap = setting.problem.gap(world.look(strategy.result).numpy())
        outcome.gap = gap if gap <= DIVERGED else math.inf
        self._tell(now, gap)
        if setting.until is not None and gap <= setting.until:
            outcome.seconds_to_tolerance = now
            raise _Over
        if outcome.diverged:
            raise _Over

    def _note_update(self, world: SimWorld) -> None:
        if self._seconds(world) <= self._setting.seconds + _ROUNDING:
            self._updates[world.rank] += 1

    def _conclude(self) -> None:
        outcome, made = self._outcome, self._updates
        outcome.cpu_seconds = time.process_time() - self._cpu_began
        outcome.updates = max(made) if self._ranks[0].replicated else sum(made)
        outcome.waited = sum(self._waited) / len(self._waited)
        for strategy in self._ranks:
            outcome.staleness.update(strategy.staleness.histogram)
            outcome.dropped += strategy.dropped
