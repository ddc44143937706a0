"""Buckets: what is exchanged at a time while backward() still runs, and whose turn it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.replica import Pair, Replica
from hpcasync.world import RankFailed


@dataclass(frozen=True, eq=False)
class Bucket:
    """Tensors [first, stop) of a pair, which lie side by side on its flat vector."""

    pair: Pair
    first: int
    stop: int

    @property
    def tensors(self) -> list[Tensor]:
        return self.pair.tensors[self.first : self.stop]

    @property
    def start_element(self) -> int:
        return self.pair.spans[self.first].start

    @property
    def stop_element(self) -> int:
        return self.pair.spans[self.stop - 1].stop

    @property
    def elements(self) -> int:
        return self.stop_element - self.start_element

    @property
    def bytes(self) -> int:
        return self.elements * self.pair.memory.itemsize


def divide(sizes_bytes: Sequence[int], cap_bytes: int) -> list[tuple[int, int]]:
    """[first, stop) of buckets of neighbours, from the last tensor to the first, as backward() reaches them.

    A bucket takes tensors until the next would carry it over the cap; one tensor above the cap is a bucket by itself.
    """
    buckets = []
    stop, filled = len(sizes_bytes), 0
    for index in reversed(range(len(sizes_bytes))):
        if filled and filled + sizes_bytes[index] > cap_bytes:
            buckets.append((index + 1, stop))
            stop, filled = index + 1, 0
        filled += sizes_bytes[index]
    buckets.append((0, stop))
    return buckets


def buckets_of(replica: Replica, bucket_bytes: int) -> list[Bucket]:
    """All buckets of a replica, in the order in which a model whose layers run as they are listed completes them.

    Raises:
        UsageError: a cap below 1 byte.
    """
    if bucket_bytes < 1:
        raise UsageError(f"bucket_bytes={bucket_bytes}: a bucket holds at least 1 byte")
    buckets = [
        Bucket(pair, first, stop)
        for pair in replica.pairs
        for first, stop in divide([tensor.nbytes for tensor in pair.tensors], bucket_bytes)
    ]
    place = {parameter: place for place, parameter in enumerate(replica.model.parameters())}
    return sorted(buckets, key=lambda bucket: -min(place[tensor] for tensor in bucket.tensors))  # type: ignore[index]


class Turns:
    """Follows a backward(): buckets have their turn in one order, the same on all ranks, each once it is complete.

    Args:
        take: called with a bucket when it is complete and all before it have been taken.
    """

    def __init__(self, buckets: Sequence[Bucket], take: Callable[[Bucket], None]) -> None:
        self.buckets, self._take = buckets, take
        self._number = {tensor: i for i, bucket in enumerate(buckets) for tensor in bucket.tensors}
        self.restart()

    def restart(self) -> None:
        """Another step begins: no gradient is there yet."""
        self._failure: RankFailed | None = None
        self._turn = 0
        self._missing = [len(bucket.tensors) for bucket in self.buckets]
        self._complete: set[Tensor] = set()

    @property
    def begun(self) -> bool:
        """True if backward() has completed a gradient in this step."""
        return bool(self._complete)

    @property
    def bucket(self) -> Bucket:
        """The bucket that is taken next."""
        return self.buckets[self._turn]

    def is_next(self, tensor: Tensor) -> bool:
        """True if ``tensor`` is in the bucket that is taken next."""
        return self._number[tensor] == self._turn

    def is_complete(self, tensor: Tensor) -> bool:
        """True if backward() has completed the gradient of ``tensor`` in this step."""
        return tensor in self._complete

    def complete(self, tensor: Tensor) -> None:
        """backward() has completed the gradient of ``tensor``.

        Raises:
            UsageError: it was complete before in this step.
        """
        if tensor in self._complete:
            raise UsageError(
                "a second gradient for a parameter within one step: this strategy exchanges inside backward(), so it "
                "takes one backward() per step(); add up the losses before backward(), or choose sync"
            )
        self._complete.add(tensor)
        self._missing[self._number[tensor]] -= 1

    def advance(self) -> None:
        """Take every bucket whose turn has come.

        That a rank has died is left for :meth:`finish` to say: whoever calls backward() does not expect to hear of it.
        """
        try:
            while self._failure is None and self._turn < len(self.buckets) and not self._missing[self._turn]:
                self._next()
        except RankFailed as failure:
            self._failure = failure

    def finish(self) -> None:
        """Take the buckets that are left, complete or not.

        Raises:
            RankFailed: also for what :meth:`advance` has met with.
        """
        if self._failure is not None:
            raise self._failure
        while self._turn < len(self.buckets):
            self._next()

    def _next(self) -> None:
        self._take(self.bucket)
        self._turn += 1
