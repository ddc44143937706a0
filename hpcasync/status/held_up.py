"""Who holds up a run, by the pulses that its ranks leave in its folder."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from hpcasync.stall.judgement import Seen, Stall, judge
from hpcasync.stall.pulse import Pulse, pulse_file, pulsing

HELD_UP_SECONDS = 10.0  # without a step: worth a word, though nothing need be wrong


def held_up(folder: Path, dead: Collection[int]) -> Stall | None:
    """The ranks that the others have to wait for; None where steps are made or nothing is known.

    Args:
        dead: the others go on without these.
    """
    everyone = {}
    for rank in pulsing(folder):
        pulse = Pulse.read(folder, rank)
        if pulse is not None and rank not in dead:
            everyone[rank] = Seen(pulse, _age(pulse_file(folder, rank), pulse.every_seconds))
    return judge(everyone, HELD_UP_SECONDS)


def _age(path: Path, every_seconds: float) -> float:
    """Seconds since ``path`` was written, as far as it should have been written again by now."""
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
    return age if age > every_seconds else 0.0
