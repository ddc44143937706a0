"""How fast the ranks' network is: seconds per message and per byte, as the simulator counts them."""

from __future__ import annotations

from hpcasync.world import World

_LENGTH = 1 << 18  # 1 MiB of float32: long enough that its bytes take longer than the message does
_REPEATS = 5


def ping(world: World) -> dict[str, float]:
    """Collective; a few milliseconds. {alpha_seconds, beta_seconds_per_byte} of the best of a few allreduces.

    By the cost model of ``hpcasync.sim``: an allreduce takes alpha · ceil(log2 n) + 2 beta · bytes · (n - 1) / n.
    """
    if world.size == 1:
        return {"alpha_seconds": 0.0, "beta_seconds_per_byte": 0.0}
    short, long = (_allreduce_seconds(world, length) for length in (1, _LENGTH))
    rounds = (world.size - 1).bit_length()
    passed_on_bytes = 2 * 4 * (_LENGTH - 1) * (world.size - 1) / world.size
    return {"alpha_seconds": short / rounds, "beta_seconds_per_byte": max(long - short, 0.0) / passed_on_bytes}


def _allreduce_seconds(world: World, length: int) -> float:
    buffer = world.buffer(length)
    taken = []
    for _ in range(_REPEATS):
        world.barrier()
        began = world.now()
        world.allreduce(buffer)
        taken.append(world.now() - began)
    return min(taken)
