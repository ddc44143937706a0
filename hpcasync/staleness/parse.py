"""Policies by name, as on the command line: ``policy=ringmaster:8``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hpcasync.errors import UsageError
from hpcasync.staleness.policies import (
    AdaptiveCompensation,
    Bounded,
    DelayAdaptive,
    DelayCompensation,
    GapAware,
    InverseStaleness,
    Lipschitz,
    Malenia,
    Quorum,
    Rennala,
    Ringmaster,
)
from hpcasync.staleness.policy import Policy


def _all_but(spare: int, ranks: int) -> Quorum:
    if spare < 0:
        raise UsageError(f"{spare} is not a number of ranks from 0 on")
    return Quorum(max(1, ranks - spare))


class _Form(NamedTuple):
    build: Callable[..., Policy]  # (number of ranks, numbers after the name) -> Policy
    kinds: tuple[type[int] | type[float], ...]
    required: int
    usage: str


_FORMS = {
    "async": _Form(lambda n: Policy(), (), 0, "async"),
    "bsp": _Form(lambda n: Bounded(0), (), 0, "bsp"),
    "ssp": _Form(lambda n, bound: Bounded(bound), (float,), 1, "ssp:STEPS"),
    "quorum": _Form(lambda n, q, *grace: Quorum(q, *grace), (int, float), 1, "quorum:RANKS[:GRACE_SECONDS]"),
    "backup": _Form(lambda n, spare=1: _all_but(spare, n), (int,), 0, "backup[:RANKS]"),
    "ringmaster": _Form(lambda n, r=None: Ringmaster(n if r is None else r), (float,), 0, "ringmaster[:DELAY]"),
    "rennala": _Form(lambda n, s=None: Rennala(n if s is None else s), (int,), 0, "rennala[:GRADIENTS]"),
    "malenia": _Form(lambda n, s=None: Malenia(n if s is None else s), (int,), 0, "malenia[:GRADIENTS]"),
    "lipschitz": _Form(lambda n, f=None: Lipschitz((n - 1) // 3 if f is None else f), (int,), 0, "lipschitz[:RANKS]"),
    "dc": _Form(lambda n, strength=0.04: DelayCompensation(strength), (float,), 0, "dc[:LAMBDA]"),
    "dc_adaptive": _Form(lambda n, strength=2.0: AdaptiveCompensation(strength), (float,), 0, "dc_adaptive[:LAMBDA]"),
    "gap": _Form(lambda n: GapAware(), (), 0, "gap"),
    "inverse": _Form(lambda n: InverseStaleness(), (), 0, "inverse"),
    "delay_adaptive": _Form(
        lambda n, delay=None: DelayAdaptive(n if delay is None else delay), (int,), 0, "delay_adaptive[:DELAY]"
    ),
}


def parse_policy(text: str, ranks: int) -> Policy:
    """The policy that ``text`` names for so many ranks, for example ``"ringmaster:8"``.

    Without its number, ringmaster, rennala, malenia and delay_adaptive take the number of ranks.

    Raises:
        UsageError: an unknown policy (the message lists the known ones), a number too many or too few, or out of range.
    """
    name, *words = text.split(":")
    form = _FORMS.get(name)
    if form is None:
        raise UsageError(f"policy={text}: unknown; known: {', '.join(form.usage for form in _FORMS.values())}")
    if not form.required <= len(words) <= len(form.kinds):
        raise UsageError(f"policy={text}: write {form.usage}")
    try:
        return form.build(ranks, *(_number(word, kind) for word, kind in zip(words, form.kinds, strict=False)))
    except UsageError as error:
        raise UsageError(f"policy={text}: {error}") from None


def _number(word: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(word)
    except ValueError:
        raise UsageError(f"{word!r} is not {'a whole number' if kind is int else 'a number'}") from None
