"""When simulated ranks end their steps, in place of a law of how long these take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_LEAST_SECONDS = 1e-9


@dataclass(frozen=True)
class Timetable:
    """Step ``k`` (from 0) of rank ``r`` ends its computation at ``moments[r][k]`` s, or at once if that is past."""

    moments: Sequence[Sequence[float]]

    def seconds_left(self, rank: int, step: int, now: float) -> float:
        """From ``now`` to the end of the computation; above 0."""
        return max(self.moments[rank][step] - now, _LEAST_SECONDS)
