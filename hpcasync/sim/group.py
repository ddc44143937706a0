"""The ranks of one simulated World: collectives among them, what they know of the dead, and their successor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hpcasync.sim.events import Rank, Simulation, Source
from hpcasync.world import Node, RankFailed, WorldError

_NAMED = 8  # missing ranks named in a description
Combine = Callable[[list[Any]], Any]


class Collective(Source):
    """One collective: who has come with what, and, once all have, the result that all share."""

    def __init__(self, verb: str, first: Rank, combine: Combine) -> None:
        super().__init__()
        self.verb, self.first, self.combine = verb, first, combine
        self.payloads: dict[int, Any] = {}
        self.full = False  # all have come and all of them alive: it will be done, whoever dies now
        self.done = False
        self.result: Any = None

    def finish(self) -> None:
        self.result = self.combine([payload for _, payload in sorted(self.payloads.items())])
        self.payloads.clear()
        self.done = True
        self.changed()


class Group:
    """``ranks[i]`` is called i here. ``ranks_per_node`` consecutive ranks of the simulation share a node."""

    def __init__(self, simulation: Simulation, ranks: Sequence[Rank], ranks_per_node: int) -> None:
        self.simulation, self.ranks, self.size = simulation, ranks, len(ranks)
        self.nodes = _nodes(ranks, ranks_per_node)
        self.known_dead: set[int] = set()
        self.revoked = False  # somebody has called shrink(): every other verb fails from then on
        self._ranks_per_node = ranks_per_node
        self._joined = [0] * self.size
        self._open: dict[int, Collective] = {}
        self._shrinking: set[int] = set()
        self._successor: tuple[Group, dict[int, int]] | None = None
        self._regrouping = False
        for index, rank in enumerate(ranks):
            rank.on_detection.append(partial(self._lose, index))

    def beside(self, agents: Sequence[Rank]) -> Group:
        """A group of its own for what works beside this one's ranks."""
        return Group(self.simulation, agents, self._ranks_per_node)

    @property
    def latency(self) -> float:
        """Seconds until a word from every rank can have reached every rank: alpha · ceil(log2 n)."""
        return self.simulation.alpha * (self.size - 1).bit_length()

    def check_revoked(self) -> None:
        if self.revoked:
            raise RankFailed(tuple(sorted(self.known_dead)))

    def check_alive(self) -> None:
        if self.revoked or self.known_dead:
            raise RankFailed(tuple(sorted(self.known_dead)))

    def join(self, index: int, verb: str, payload: Any, combine: Combine, seconds: float) -> Collective:
        """Rank ``index`` comes to its next collective. ``seconds`` after the last has come, it is done.

        Raises:
            RankFailed: a rank of this group is known to be dead.
            WorldError: the ranks do not all call the same verb with the same arguments.
        """
        self.check_alive()
        number = self._joined[index]
        self._joined[index] += 1
        collective = self._open.get(number)
        if collective is None:
            collective = self._open[number] = Collective(verb, self.ranks[index], combine)
        elif collective.verb != verb:
            raise WorldError(f"{self.ranks[index]} calls {verb} where {collective.first} has called {collective.verb}")
        collective.payloads[index] = payload
        if len(collective.payloads) == self.size and not any(rank.dead for rank in self.ranks):
            del self._open[number]
            collective.full = True
            self.simulation.at(self.simulation.time + seconds, collective.finish)
        return collective

    def wait(self, index: int, collective: Collective) -> None:
        """Pause rank ``index`` until ``collective`` is done. Raises RankFailed if it never will be."""
        rank = self.ranks[index]
        while not collective.done:
            if not collective.full:
                self.check_alive()
            collective.watch(rank)
            rank.pause(lambda: self._describe(collective))

    def shrink(self, index: int) -> tuple[Group, int]:
        """Pause rank ``index`` until all not known to be dead have come here; their group, and its place in it."""
        rank = self.ranks[index]
        self._shrinking.add(index)
        if not self.revoked:
            self.revoked = True
            self._wake_all()
        self._regroup()
        while self._successor is None:
            rank.pause(lambda: f"shrink ({self._missing(self._shrinking)})")
        group, places = self._successor
        return group, places[index]

    def _regroup(self) -> None:
        expected = self.size - len(self.known_dead - self._shrinking)
        if len(self._shrinking) == expected and not self._regrouping:
            self._regrouping = True
            self.simulation.at(self.simulation.time + self.latency, self._found_successor)

    def _found_successor(self) -> None:
        survivors = [index for index in range(self.size) if index not in self.known_dead]
        group = Group(self.simulation, [self.ranks[index] for index in survivors], self._ranks_per_node)
        self._successor = group, {index: place for place, index in enumerate(survivors)}
        self._wake_all()

    def _lose(self, index: int) -> None:
        self.known_dead.add(index)
        if self.revoked:
            self._regroup()
        self._wake_all()

    def _wake_all(self) -> None:
        for rank in self.ranks:
            rank.wake()

    def _describe(self, collective: Collective) -> str:
        return f"{collective.verb} ({self._missing(collective.payloads)})"

    def _missing(self, present: Any) -> str:
        missing = [str(rank) for index, rank in enumerate(self.ranks) if index not in present]
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        return f"{self.size - len(missing)} of {self.size} have come; missing: {', '.join(missing[:_NAMED])}{more}"


def _nodes(ranks: Sequence[Rank], ranks_per_node: int) -> list[Node]:
    members: dict[int, list[int]] = {}
    for index, rank in enumerate(ranks):
        members.setdefault(rank.number // ranks_per_node, []).append(index)
    placed = [members[rank.number // ranks_per_node] for rank in ranks]
    seen = dict.fromkeys(members, 0)
    nodes = []
    for rank, peers in zip(ranks, placed, strict=True):
        node = rank.number // ranks_per_node
        nodes.append(Node(seen[node], len(peers), peers[0]))
        seen[node] += 1
    return nodes
