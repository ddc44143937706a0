"""SimWorld: simulated ranks in one process, on a seeded virtual clock. No MPI, no threads, nothing left to chance.

It is harsher than MPI: a buffer in flight reads NaN, events of the same moment come in a random (seeded) order, a wait
that nobody can end raises Deadlock, collectives that do not match raise at once, and ranks die when they are told to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from hpcasync.errors import UsageError
from hpcasync.laws import Law, parse_law
from hpcasync.sim.events import DETECTION_SECONDS, Rank, Simulation
from hpcasync.sim.group import Group
from hpcasync.sim.timetable import Timetable
from hpcasync.sim.world import SimWorld

__all__ = ["DETECTION_SECONDS", "SimWorld", "Timetable", "simulate"]


def simulate(
    main: Callable[[SimWorld], Any],
    size: int,
    *,
    compute: str | Law | Timetable = "constant",
    alpha: float = 0.0,
    beta: float = 0.0,
    seed: int = 0,
    fail: Mapping[int, int | float] | None = None,
    kill: Mapping[int, int] | None = None,
    ranks_per_node: int | None = None,
) -> list[Any]:
    """Run ``main(world)`` as ``size`` ranks; what each of them returned, None for the dead.

    Args:
        compute: the law of the seconds that ``world.computed()`` takes (see :mod:`hpcasync.laws`), or when it ends.
        alpha: seconds per message.
        beta: seconds per byte.
        seed: of the order of simultaneous events and, with the rank, of its compute times.
        fail: ``{rank: 20}`` dies as it enters its 20th call of a verb (of the World, its windows and requests, calls
            inside conditions and ``now`` not counted); ``{rank: 3.5}`` at 3.5 s of virtual time. The survivors hear of
            it DETECTION_SECONDS later. Messages that a rank sent before its death still arrive.
        kill: ``{rank: 20}`` dies when it has computed its 20th step.
        ranks_per_node: consecutive ranks that share a node; all of them by default.

    Raises:
        UsageError: an argument that makes no sense.
        Deadlock: nobody could go on; the message names who waits for what.
        BaseException: the first that a rank raised. It ends all ranks, and a note names the rank.
    """
    if size < 1:
        raise UsageError(f"size={size}: there is at least 1 rank")
    if seed < 0:
        raise UsageError(f"seed={seed}: it is 0 or more")
    if ranks_per_node is not None and ranks_per_node < 1:
        raise UsageError(f"ranks_per_node={ranks_per_node}: it is at least 1")
    for name, cost in (("alpha", alpha), ("beta", beta)):
        if not 0 <= cost < math.inf:
            raise UsageError(f"{name}={cost}: it is 0 or more, and finite")
    law = parse_law(compute) if isinstance(compute, str) else compute
    simulation = Simulation(size, law, alpha, beta, seed)
    for number, when in (fail or {}).items():
        if not 0 <= number < size:
            raise UsageError(f"fail={{{number}: {when}}}: rank {number} is not one of 0 to {size - 1}")
        _schedule_death(simulation.ranks[number], when)
    for number, step in (kill or {}).items():
        simulation.ranks[number].dies_in_step = step
    group = Group(simulation, simulation.ranks, ranks_per_node or size)
    return simulation.run([partial(main, SimWorld(group, rank)) for rank in range(size)])


def _schedule_death(rank: Rank, when: int | float) -> None:
    if isinstance(when, int) and when >= 1:
        rank.dies_at_call = when
    elif isinstance(when, float) and 0 <= when < math.inf:
        rank.simulation.at(when, rank.die)
    else:
        raise UsageError(f"fail={{{rank.number}: {when}}}: write a call (1, 2, ...) or a time (0.0, 3.5, ...)")
