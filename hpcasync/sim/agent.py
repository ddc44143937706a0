"""What works for a simulated rank beside it, as an MPI rank's progress thread does."""

from __future__ import annotations

from functools import partial

from greenlet import greenlet  # type: ignore[import-untyped]

from hpcasync.partial import PartialRounds
from hpcasync.sim.events import Rank
from hpcasync.world import World, WorldError


class Agent(Rank):
    """Has a greenlet of its own, takes no time, shares the rank's link, and dies with it."""

    is_agent = True

    def __init__(self, principal: Rank) -> None:
        super().__init__(principal.simulation, principal.number)
        self.principal = principal
        principal.agents.append(self)

    def start(self, rounds: PartialRounds, channel: World) -> None:
        """Drive ``rounds`` until the simulation ends. ``channel`` is this agent's World."""
        simulation = self.simulation
        self.greenlet = greenlet(partial(simulation.live, self, partial(self._drive, rounds, channel)), simulation.hub)
        simulation.at(simulation.time, self.resume)

    def send(self, size_bytes: int) -> float:
        return self.principal.send(size_bytes)

    def count_sent(self, size_bytes: int) -> None:
        self.principal.count_sent(size_bytes)

    def _drive(self, rounds: PartialRounds, channel: World) -> None:
        try:
            rounds.open()
            while True:
                channel.wait_until(lambda: rounds.due() is not None)
                rounds.poll()
                self.principal.wake()
        except WorldError as error:
            rounds.fail(error)
            self.principal.wake()
