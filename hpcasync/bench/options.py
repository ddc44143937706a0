"""The options of every bench, and what they make it launch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import FlagCreatePairsOff, arg

from hpcasync.bench.launches import Launch
from hpcasync.errors import UsageError
from hpcasync.strategies import STRATEGIES, parse_strategy

# What each peer is measured as, and the ranks' environment then. Horovod's background thread looks for work once per
# cycle, every millisecond unless told otherwise, and that is its latency.
PEERS: dict[str, dict[str, dict[str, str]]] = {
    "horovod": {"horovod": {}, "horovod, cycle 0.1 ms": {"HOROVOD_CYCLE_TIME": "0.1"}},
    "ddp": {"ddp": {"GLOO_SOCKET_IFNAME": "lo"}},
}


@dataclass(kw_only=True)
class Options:
    """What every bench takes."""

    name: ClassVar[str]
    example: ClassVar[str]
    references: ClassVar[dict[str, str]]  # {subject: the metric in which others are compared with it}
    default_strategies: ClassVar[tuple[str, ...]]

    strategies: Annotated[str | None, arg(metavar="'NAME K=V ...; ...'", help_behavior_hint="")] = None
    """What to measure, separated by semicolons (default: the bench's own choice)."""
    peers: Annotated[str, arg(metavar="NAME,...", help_behavior_hint="")] = ""
    """Also measure horovod (DistributedOptimizer) and ddp (PyTorch's DistributedDataParallel over gloo)."""
    repeats: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """How often everything is measured, each time in another order (default 5; 1 with --quick)."""
    quick: Annotated[bool, FlagCreatePairsOff] = False
    """Short and few measurements: does it work? The numbers mean little."""
    results: Annotated[Path, arg(metavar="DIR")] = Path("results")
    """Folder in which the bench's own folder is made."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Also write the rows to this file."""

    @abstractmethod
    def launches(self) -> list[Launch]:
        """What one repeat launches, in the order of the table. Raises UsageError for an option that cannot be used."""

    def repeat_count(self) -> int:
        if self.repeats is not None and self.repeats < 1:
            raise UsageError(f"--repeats {self.repeats}: it must be 1 or more")
        return self.repeats or (1 if self.quick else 5)

    def chosen_strategies(self) -> list[str]:
        """The strategies as given, spaces normalized; by default those of ``default_strategies`` that there are."""
        if self.strategies is None:
            return [text for text in self.default_strategies if text.split()[0] in STRATEGIES]
        chosen = [" ".join(text.split()) for text in self.strategies.split(";") if text.strip()]
        for text in chosen:
            parse_strategy(text.split())
        return _distinct("--strategies", self.strategies, chosen)

    def chosen_peers(self) -> list[str]:
        return names("--peers", self.peers, list(PEERS))

    def peer_environments(self) -> dict[str, dict[str, str]]:
        """{subject: environment} of the chosen peers."""
        return {subject: found for peer in self.chosen_peers() for subject, found in PEERS[peer].items()}


def names(option: str, text: str, known: Sequence[str]) -> list[str]:
    """The names in ``text``, separated by commas.

    Raises:
        UsageError: one is unknown, or given twice.
    """
    given = [word.strip() for word in text.split(",") if word.strip()]
    for word in given:
        if word not in known:
            raise UsageError(f"{option} {text}: {word!r} is unknown; known: {', '.join(known)}")
    return _distinct(option, text, given)


def counts(option: str, text: str) -> list[int]:
    """The numbers of ranks in ``text``, separated by commas.

    Raises:
        UsageError: one is no whole number of 1 or more, is given twice, or there is none.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not (word.isascii() and word.isdigit() and int(word) > 0):
            raise UsageError(f"{option} {text}: {word!r} is not a number of ranks; write for example 1,2,4")
    return [int(word) for word in _distinct(option, text, words)]


def _distinct(option: str, text: str, given: list[str]) -> list[str]:
    twice = [word for word in given if given.count(word) > 1]
    if twice:
        raise UsageError(f"{option} {text}: {twice[0]!r} is given twice")
    return given


def ranks(option: int, least: int) -> int:
    """The number of ranks of a bench that needs ``least``."""
    if option < least:
        raise UsageError(f"--ranks {option}: this bench needs {least} or more")
    return option
