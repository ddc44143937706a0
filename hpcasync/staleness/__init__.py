"""What becomes of a contribution that was computed at parameters which have changed since: policies.

A policy is a frozen dataclass with five pure functions, which ``strategies/server.py`` asks in the course of a step:

    gate(stamp, version)            may this rank start its next step?
    admit(stamp, ledger)            is the contribution used at all?
    correct(g, now, then, memory)   what is repaired in the gradient g?
    weight(stamp, ledger)           how much of it counts?
    complete(ledger)                do the contributions so far make an update?

The *delay* of a contribution is the number of updates made since its parameters were read.
"""

from hpcasync.staleness.parse import parse_policy
from hpcasync.staleness.policy import Ledger, Memory, Policy, Stamp

__all__ = ["Ledger", "Memory", "Policy", "Stamp", "parse_policy"]
