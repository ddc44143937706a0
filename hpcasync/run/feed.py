"""A rank's way through its data: epoch after epoch, also from the middle of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from hpcasync.errors import UsageError

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Standing:
    """How far a rank has come: whole epochs, batches of the next one, and the seconds it took."""

    epoch: int = 0
    batches: int = 0
    seconds: float = 0.0


class Feed:
    """The batches that come after ``standing``, which goes along with them.

    Args:
        rank: as numbered at the start.
        epochs: how many there are in all; None: no end.
    """

    def __init__(self, rank: int, epochs: int | None) -> None:
        self.standing = Standing()
        self._rank, self._epochs = rank, epochs
        self._place: tuple[int, int] | None = None  # dealt since the epoch began

    def deal(self, rank: int, size: int) -> None:
        """After a death: this rank's new number, and how many are left. The epoch begins again."""
        self._place = rank, size

    def batches(self, loader: Iterable[Batch], end_epoch: Callable[[], None]) -> Iterator[Batch]:
        """One after the other; ``end_epoch()`` is called behind the last of each epoch.

        Raises:
            UsageError: the loader has no batch.
        """
        while self._epochs is None or self.standing.epoch < self._epochs:
            epoch, made = self.standing.epoch, self.standing.batches
            if self._place is not None:
                place, self._place, made = self._place, None, 0
                if hasattr(loader, "deal"):
                    loader.deal(*place)
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
            number = 0
            for number, batch in enumerate(loader, 1):
                if number <= made:
                    continue
                self.standing = Standing(epoch, number - 1)
                yield batch
                if self._place is not None:
                    break
            else:
                if not number:
                    raise UsageError(f"rank {self._rank} has no batch: fewer samples in its shard than --batch-size?")
                end_epoch()
                self.standing = Standing(epoch + 1)


def samples_in(batch: Any) -> int:
    """Samples in a batch: the length of the first tensor or array in it that is no scalar.

    Mappings, sequences and dataclasses are looked through, one inside the other, in their order.

    Raises:
        UsageError: there is no such tensor or array.
    """
    found = _first_length(batch)
    if found is None:
        raise UsageError(
            f"how many samples are in a batch of type {type(batch).__name__}? There is no tensor or array with a batch "
            "dimension in it; say the number: run.step(loss, samples=...)"
        )
    return found


def _first_length(value: Any) -> int | None:
    if isinstance(value, Tensor | np.ndarray):
        return int(value.shape[0]) if value.ndim else None
    if isinstance(value, Mapping):
        inside: Iterable[Any] = value.values()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = (getattr(value, field.name) for field in dataclasses.fields(value))
    elif isinstance(value, list | tuple):
        inside = value
    else:
        return None
    return next((found for found in map(_first_length, inside) if found is not None), None)
