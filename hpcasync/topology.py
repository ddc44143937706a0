"""Who sends to whom when ranks gossip: pure functions of (rank, size, step), so nobody has to be asked.

A topology gives the peers that ``rank`` sends to in its step number ``step``. A rank keeps one share of its parameters
and sends one to each peer, all equal, which makes the columns of the mixing matrix add up to 1 by construction. Of
``ring``, ``exponential`` and ``one_peer`` all ranks together make a matrix whose rows add up to 1, too: a round in
which everyone is at the same step keeps the plain mean. Of ``random`` only the columns do.

Ying et al., "Exponential Graph is Provably Efficient for Decentralized Deep Training", NeurIPS 2021
(https://arxiv.org/abs/2110.13363): the one-peer exponential graph averages exactly in log2 n rounds if n is a power of
two. Other n only come close: with n = 3, 6, 12, entries are 1/8 off 1/n, relatively, after 2 ceil(log2 n) rounds.
"""

from __future__ import annotations

import random as rng
from collections.abc import Callable

import torch
from torch import Tensor

from hpcasync.errors import UsageError

Topology = Callable[[int, int, int], tuple[int, ...]]
"""(rank, size, step) to the peers that the rank sends to: no rank twice, never itself."""


def ring(rank: int, size: int, step: int) -> tuple[int, ...]:
    """Both neighbours on a ring."""
    return tuple(dict.fromkeys(peer % size for peer in (rank + 1, rank - 1) if peer % size != rank))


def exponential(rank: int, size: int, step: int) -> tuple[int, ...]:
    """The ranks 1, 2, 4, 8, ... further on: about log2 n peers in every step."""
    return tuple((rank + (1 << hop)) % size for hop in range(hops(size)))


def one_peer(rank: int, size: int, step: int) -> tuple[int, ...]:
    """One peer of the exponential graph after the other: 1, 2, 4, ... ranks further on, then 1 again."""
    return ((rank + (1 << step % hops(size))) % size,) if size > 1 else ()


def random(rank: int, size: int, step: int) -> tuple[int, ...]:
    """One peer, each of the others as likely, drawn anew in every step by a generator that rank and step seed."""
    return ((rank + 1 + rng.Random(step * size + rank).randrange(size - 1)) % size,) if size > 1 else ()


def bipartite(rank: int, size: int, step: int) -> tuple[int, ...]:
    """For an odd rank one of the even ones, each as likely; nobody for an even rank."""
    return (2 * rng.Random(step * size + rank).randrange((size + 1) // 2),) if rank % 2 else ()


def group(rank: int, size: int, step: int, members: int) -> tuple[int, ...]:
    """The others of this step's group of at most ``members`` ranks: those that differ in one digit of their number.

    Numbers are written to the base ``members``; the digit that may differ moves up from step to step and begins anew
    after the highest. So everyone has reached everyone after one round per digit if ``size`` is a power of
    ``members``, and after two rounds per digit in any case. Averaging within groups is a symmetric mixing matrix.
    """
    stride = members ** (step % digits(size, members))
    first = rank - rank // stride % members * stride
    return tuple(peer for peer in range(first, min(first + members * stride, size), stride) if peer != rank)


def sources(topology: Topology, rank: int, size: int, step: int) -> tuple[int, ...]:
    """The ranks that send to ``rank`` in ``ring``, ``exponential`` or ``one_peer``, where all send as far."""
    return tuple((2 * rank - peer) % size for peer in topology(rank, size, step))


def hops(size: int) -> int:
    """The rounds in which the one-peer exponential graph reaches everyone: log2 n, rounded up."""
    return (size - 1).bit_length()


def digits(size: int, members: int) -> int:
    """How many digits the numbers below ``size`` have to the base ``members``; 1 or more."""
    count, reached = 1, members
    while reached < size:
        count, reached = count + 1, reached * members
    return count


TOPOLOGIES: dict[str, Topology] = {
    "ring": ring,
    "exponential": exponential,
    "one_peer": one_peer,
    "random": random,
}


def named(name: str) -> Topology:
    """The topology called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in TOPOLOGIES:
        raise UsageError(f"topology={name}: it is one of {', '.join(TOPOLOGIES)}")
    return TOPOLOGIES[name]


def mixing_matrix(topology: Topology, size: int, step: int) -> Tensor:
    """(size, size) float64: entry [i, j] is the share of j's parameters that is i's after everyone's step ``step``."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for sender in range(size):
        receivers = (sender, *topology(sender, size, step))
        matrix[list(receivers), sender] = 1 / len(receivers)
    return matrix
