"""Letters between ranks that do not meet: for what its reader has to work on, where a push would just add."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hpcasync.world import World


class Mailbox:
    """A slot for one letter from every rank at every rank. Sending never waits: a slot is free, or it is not.

    A letter is put into the slot by a push onto its zeros, then announced by a number; the reader empties the slot,
    then tells the sender.

    Args:
        letter_bytes: of the letters to this rank; others may take longer or shorter ones.
    """

    def __init__(self, world: World, letter_bytes: int) -> None:
        self._rank, self._size, self._bytes = world.rank, world.size, letter_bytes
        self._slots = world.window(world.size * letter_bytes, torch.uint8)
        self._announced = world.window(world.size, torch.int64)  # letters that each rank has sent me
        self._answered = world.window(world.size, torch.int64)  # letters of mine that each rank has read
        self._sent, self._read = [0] * world.size, [0] * world.size
        self._one = torch.ones(1, dtype=torch.int64)

    def free(self) -> list[int]:
        """The other ranks that have read my last letter."""
        answered = self._answered.local.tolist()
        return [rank for rank in range(self._size) if rank != self._rank and answered[rank] == self._sent[rank]]

    def send(self, letters: dict[int, Tensor]) -> None:
        """Returns when the letters (bytes of the recipient,) uint8 have arrived at ranks that are :meth:`free`."""
        for rank, letter in letters.items():
            self._slots.push(letter, rank, self._rank * len(letter))
        self._slots.flush()
        for rank in letters:
            self._announced.push(self._one, rank, self._rank)
            self._sent[rank] += 1
        self._announced.flush()

    def read(self) -> Iterator[tuple[int, Tensor]]:
        """(sender, letter) of all letters that are there; a letter is valid until the next."""
        for rank, announced in enumerate(self._announced.local.tolist()):
            if announced > self._read[rank]:
                slot = self._slots.local[rank * self._bytes : (rank + 1) * self._bytes]
                letter = slot.clone()
                slot.zero_()
                self._read[rank] += 1
                self._answered.push(self._one, rank, self._rank)
                yield rank, letter
        self._answered.flush()

    def unread(self) -> bool:
        """True if a letter of mine has not been read."""
        return len(self.free()) < self._size - 1
