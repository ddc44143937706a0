"""After the death of a rank: the others find together and build anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hpcasync.world import RankFailed, World

Built = TypeVar("Built")


def recover(world: World, build: Callable[[World], Built]) -> tuple[World, Built]:
    """After RankFailed, by every survivor: their World, and what ``build`` has made of it.

    Whoever dies meanwhile is recovered from, too: the rest shrinks and builds once more.
    """
    while True:
        try:
            world = world.shrink()
            return world, build(world)
        except RankFailed:
            continue
