"""Who holds up a run: a judgement on the ranks' pulses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcasync.stall.activity import TRAINING
from hpcasync.stall.pulse import Pulse

SHOWN = 8  # ranks of a run, or groups of ranks that do the same
STACKS = 3


@dataclass(frozen=True)
class Seen:
    """A rank's last pulse, and how long ago it was written."""

    pulse: Pulse
    silent_seconds: float

    @property
    def unmoved_seconds(self) -> float:
        return self.pulse.unmoved_seconds + self.silent_seconds

    def is_silent(self, stall_seconds: float) -> bool:
        """It has missed several beats."""
        return self.silent_seconds >= max(stall_seconds / 2, 3 * self.pulse.every_seconds)

    def brief(self, stall_seconds: float) -> str:
        """What it does, in a word or two."""
        if self.is_silent(stall_seconds):
            return {"T": "stopped", "t": "stopped", "": "dead", "Z": "dead", "X": "dead"}.get(
                self.pulse.process_state, "silent"
            )
        if self.pulse.verb:
            return f"in {self.pulse.verb}()"
        return self.pulse.phase if self.pulse.phase != TRAINING else f"at {self.pulse.where.partition(' ')[0]}"

    def told(self, stall_seconds: float) -> str:
        """What it does, in words that can follow "rank 1"."""
        pulse = self.pulse
        at = f" at {pulse.where}" if pulse.where else ""
        if self.is_silent(stall_seconds):
            at = f", last{at}" if at else ""
            state = pulse.process_state
            if state in ("T", "t"):
                return f"is stopped (process {pulse.pid} on {pulse.host} has got a SIGSTOP){at}"
            if state in ("", "Z", "X"):
                return f"is dead (process {pulse.pid} on {pulse.host}){at}"
            return f"gives no sign of life (process {pulse.pid} on {pulse.host}){at}"
        if pulse.verb:
            why = "" if pulse.phase == TRAINING else f" while {pulse.phase}"
            return f"waits in {pulse.verb}(){why}{at}"
        return f"is {'busy' if pulse.phase == TRAINING else pulse.phase}{at}"


@dataclass(frozen=True)
class Stall:
    """Nothing goes on, or not everywhere.

    Attributes:
        culprits: the ranks that hold up the others: busy with something that does not come to an end, stopped or dead.
            None where all ranks wait for each other.
        seconds: for how long.
    """

    everyone: Mapping[int, Seen]
    culprits: tuple[int, ...]
    seconds: float
    stall_seconds: float

    @property
    def line(self) -> str:
        """Who, in what, and for how long."""
        groups = self._groups()
        lasting = f"not moved for {self.seconds:.0f} s"
        if not self.culprits:
            return f"the ranks have {lasting}: {_enumerated(groups)}"
        others = [(told, ranks) for told, ranks in groups if ranks[0] not in self.culprits and self._waits(ranks[0])]
        waiting = f"; {_enumerated(others)}" if others else ""
        if len(self.culprits) == 1:
            (rank,) = self.culprits
            return f"rank {rank} has {lasting}: it {self.everyone[rank].told(self.stall_seconds)}{waiting}"
        guilty = [(told, ranks) for told, ranks in groups if ranks[0] in self.culprits]
        return f"{_ranks(self.culprits)} have {lasting}: {_enumerated(guilty)}{waiting}"

    @property
    def brief(self) -> str:
        """The same for a column of a table."""
        blamed = self.culprits or tuple(ranks[0] for _, ranks in self._groups())
        told = [f"{rank} {self.everyone[rank].brief(self.stall_seconds)}" for rank in blamed[:STACKS]]
        more = [f"{len(blamed) - STACKS} more"] if len(blamed) > STACKS else []
        return f"{', '.join(told + more)} for {self.seconds:.0f} s"

    @property
    def stacks(self) -> str:
        """The Python stacks of those to blame; where all wait, of one of each kind."""
        shown = self.culprits or [ranks[0] for _, ranks in self._groups()]
        return "".join(
            f"stack of rank {rank}, in step {self.everyone[rank].pulse.step + 1}:\n{self.everyone[rank].pulse.stack}"
            for rank in shown[:STACKS]
        )

    def _waits(self, rank: int) -> bool:
        return bool(self.everyone[rank].pulse.verb) and self.everyone[rank].unmoved_seconds >= self.stall_seconds / 2

    def _groups(self) -> list[tuple[str, list[int]]]:
        """(what they do, ranks), the ranks that do the same together."""
        groups: dict[tuple[bool, str], list[int]] = {}
        for rank, seen in self.everyone.items():
            groups.setdefault((rank in self.culprits, seen.told(self.stall_seconds)), []).append(rank)
        return [(told, ranks) for (_, told), ranks in groups.items()]


def judge(everyone: Mapping[int, Seen], stall_seconds: float) -> Stall | None:
    """Whether somebody has held up the run for ``stall_seconds``.

    Whoever waits for others is not to blame, and not held up as long as any rank moves: it may be one that is slow.
    """
    unmoved = {rank: seen.unmoved_seconds for rank, seen in everyone.items()}
    culprits = tuple(
        rank
        for rank, seen in everyone.items()
        if unmoved[rank] >= stall_seconds and (seen.is_silent(stall_seconds) or not seen.pulse.verb)
    )
    if culprits:
        return Stall(everyone, culprits, max(unmoved[rank] for rank in culprits), stall_seconds)
    if unmoved and min(unmoved.values()) >= stall_seconds:
        return Stall(everyone, (), min(unmoved.values()), stall_seconds)
    return None


def _enumerated(groups: list[tuple[str, list[int]]]) -> str:
    told = [f"{_ranks(ranks)} {_plural(text, ranks)}" for text, ranks in groups[:SHOWN]]
    more = len(groups) - SHOWN
    return "; ".join(told + ([f"and {more} more"] if more > 0 else []))


def _plural(text: str, ranks: list[int]) -> str:
    if len(ranks) == 1:
        return text
    first, _, rest = text.partition(" ")
    return f"{ {'is': 'are', 'waits': 'wait', 'gives': 'give'}[first] } {rest}"


def _ranks(ranks: Sequence[int]) -> str:
    """ "rank 1", or "ranks 1, 2, 3 and 17 more"."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    more = len(ranks) - SHOWN
    return f"ranks {', '.join(map(str, ranks[:SHOWN]))}" + (f" and {more} more" if more > 0 else "")
