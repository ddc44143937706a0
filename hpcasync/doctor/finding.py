"""What one look has found, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        name: what was looked at.
        verdict: note: good to know, or slower than need be; problem: runs will fail, or be far slower.
        told: what was found.
        advice: what to do; empty if nothing.
        values: the figures behind it, as JSON can hold them.
    """

    name: str
    verdict: Verdict
    told: str
    advice: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    def entry(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def said_bytes(count: float) -> str:
    """A number of bytes with a decimal unit and at most three digits before it."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def said_seconds(seconds: float) -> str:
    """A time in the unit that fits it."""
    for factor, unit in ((1e9, "ns"), (1e6, "µs"), (1e3, "ms")):
        if abs(seconds) * factor < 999.5:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"
