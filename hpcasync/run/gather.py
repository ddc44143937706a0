"""Small agreements among the ranks, made of the World's one collective that adds."""

from __future__ import annotations

import torch

from hpcasync.world import World


def gather_text(world: World, text: str) -> list[str]:
    """Collective. Every rank's ``text``. No pickle: bytes in a table in which each rank fills its own row."""
    mine = torch.tensor(list(text.encode()), dtype=torch.uint8)
    lengths = torch.zeros(world.size, dtype=torch.int64)
    lengths[world.rank] = len(mine)
    world.allreduce(lengths)
    table = torch.zeros(world.size * int(lengths.max()), dtype=torch.uint8)
    rows = table.view(world.size, -1)
    rows[world.rank, : len(mine)] = mine
    world.allreduce(table)
    return [bytes(row[:length].tolist()).decode() for row, length in zip(rows, lengths.tolist(), strict=True)]


def broadcast_text(world: World, text: str) -> str:
    """Collective. Rank 0's ``text``; the others' is not looked at."""
    content = torch.tensor(list(text.encode()), dtype=torch.uint8)
    length = torch.tensor([len(content)])
    world.broadcast(length)
    content = content if world.rank == 0 else torch.zeros(int(length), dtype=torch.uint8)
    world.broadcast(content)
    return bytes(content.tolist()).decode()


def first_failure(world: World, code: int) -> tuple[int, int]:
    """Collective. (rank, code) of the lowest rank whose ``code`` is not 0; (-1, 0) when all are well."""
    codes = torch.zeros(world.size, dtype=torch.int64)
    codes[world.rank] = code
    world.allreduce(codes)
    failed = codes.nonzero().view(-1).tolist()
    return (failed[0], int(codes[failed[0]])) if failed else (-1, 0)
