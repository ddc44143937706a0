"""The wire carries the small message, and what it leaves out is remembered."""

from __future__ import annotations

import pytest
import torch

from hpcasync.compression import parse_compression
from hpcasync.reduction import Layout
from hpcasync.replica import Replica
from hpcasync.sim import simulate
from hpcasync.strategies import parse_strategy
from hpcasync.world import World
from tests.compressed import ALL, NAMES, codec, vector
from tests.training import Vectors, gradient, linear, train


class Linear(torch.nn.Module):
    """A matrix and a vector, whose gradients are given."""

    def __init__(self, n: int, m: int, b: int) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.zeros(n, m))
        self.vector = torch.nn.Parameter(torch.zeros(b))

    def loss(self, gradient: torch.Tensor) -> torch.Tensor:
        return self.matrix.flatten() @ gradient[: self.matrix.numel()] + self.vector @ gradient[self.matrix.numel() :]


N, M, B = 40, 30, 3


def rank_two(rank: int) -> torch.Tensor:
    """(N M + B,) a gradient whose matrix has rank 2 when summed over any ranks, and a vector."""
    generator = torch.Generator().manual_seed(7)
    left = torch.randn(N, 2, generator=generator)
    right = torch.randn(2, M, generator=generator.manual_seed(rank))
    return torch.cat([(left @ right).flatten(), torch.full((B,), rank + 1.0)])


def stepped(words: str, compress: str | None, world: World, gradient: torch.Tensor, steps: int = 1):
    """(n,) the parameters after 4 steps of lr 1 with this gradient and ``steps`` more; bytes sent in each of these."""
    replica = Replica(model := Linear(N, M, B))
    optimizer = torch.optim.SGD(replica.parameters(), lr=1.0)
    strategy = parse_strategy(words.split(), compress).build(replica, world, optimizer)
    for step in range(4 + steps):
        if step == 4:
            before = world.sent_bytes
        model.loss(gradient).backward()
        world.computed(0.0)
        strategy.step()
    sent = (world.sent_bytes - before) / steps
    strategy.drain()
    return strategy.result(), sent


def test_powersgd_sums_matrices_of_its_rank_exactly():
    expected = -5 * sum(rank_two(rank) for rank in range(4)) / 4
    for result, _ in simulate(lambda w: stepped("sync", "powersgd:2", w, rank_two(w.rank)), 4):
        assert torch.allclose(result, expected, rtol=0, atol=1e-3)


def test_powersgd_sends_two_thin_factors():
    """r (n + m) elements per matrix, the vector and the count; an allreduce sends each 2 (4 - 1) / 4 times."""
    elements = 2 * (N + M) + B + 1
    for _, sent in simulate(lambda w: stepped("sync", "powersgd:2", w, rank_two(w.rank), 3), 4):
        assert sent == 1.5 * 4 * elements


@pytest.mark.parametrize("words", ["sync", "stale", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_the_wire_carries_the_small_message(words, name):
    """2 (4 - 1) payloads of a quarter of the vector, each with its count; an allreduce sends 1.5 vectors."""
    steps, piece = 20, -(-(N * M + B) // 4)
    row = -(-(8 + codec(name).payload_bytes(piece, torch.float32)) // 8) * 8
    for _, sent in simulate(lambda w: stepped(words, name, w, rank_two(w.rank), steps), 4):
        if words == "eager":
            assert sent < 1.3 * 6 * row + 150  # a few rounds more than steps; marks, and 2 integers per rank
        else:
            assert sent == 6 * row


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_payloads_is_exchanged(ranks, name):
    """On real ranks too: an all-to-all of a row per rank, and an allgather that brings as many."""

    def main(world: World):
        passed_bytes = []

        def counting(verb):
            return lambda *buffers: (passed_bytes.append(max(b.nbytes for b in buffers)), verb(*buffers))[1]

        replica = Replica(model := Linear(N, M, B))
        optimizer = torch.optim.SGD(replica.parameters(), lr=1.0)
        strategy = parse_strategy(["sync"], name).build(replica, world, optimizer)
        for verb in ("allreduce", "iallreduce", "ialltoall", "iallgather"):
            setattr(world, verb, counting(getattr(world, verb)))
        model.loss(rank_two(world.rank)).backward()
        strategy.step()
        row = -(-(8 + codec(name).payload_bytes(-(-(N * M + B) // world.size), torch.float32)) // 8) * 8
        assert passed_bytes == ([world.size * row] * 2 if world.size > 1 else [4 * (N * M + B + 1)])
        strategy.drain()

    ranks(main)


@pytest.mark.parametrize("name", ALL)
def test_what_a_compressed_sum_leaves_out_is_remembered(name):
    """Sent + residuals = generated: of every rank what it gave, and of every owner what it was given."""

    def main(world: World):
        replica = Replica(Linear(N, M, B))
        layout = Layout.of(replica.pairs[0])
        reduction = parse_compression(name).reduction([layout], world.size)
        received, generated = torch.zeros(2, layout.length, dtype=torch.float64)
        for step in range(5):
            message = torch.cat([vector(layout.length, 10 * world.rank + step), torch.ones(1)])
            generated += message[:-1]
            reduction.whole(world, [message])
            assert message[-1] == world.size
            received += message[:-1]
        world.allreduce(generated)
        residual = sum(state.double() for state in _residuals(reduction, world))
        world.allreduce(residual)
        assert torch.allclose(received + residual, generated, rtol=0, atol=1e-4 * float(generated.abs().max()))

    simulate(main, 3)


def _residuals(reduction, world: World) -> list[torch.Tensor]:
    """What this rank has left out of its own gradients, and of the sums that it owns, as vectors."""
    (saved,) = reduction.state_dict()["residuals"]
    length = N * M + B
    if saved.dim() == 1:
        return [saved]
    mine = saved[:-1].reshape(-1)[:length]
    owned = torch.zeros(world.size, saved.shape[1])
    owned[world.rank] = saved[-1]
    return [mine, owned.reshape(-1)[:length]]


@pytest.mark.parametrize("name", NAMES)
def test_downpour_applies_everything_in_the_end(ranks, name):
    """What letters leave out stays with the rank that made it, which sends the last of it as it is."""

    def main(world: World):
        steps = [3 + 4 * ((rank + 1) % world.size) for rank in range(world.size)]
        replica = Replica(model := Vectors((50, 3), (7,)))
        optimizer = torch.optim.SGD(replica.parameters(), lr=1.0)
        strategy = parse_strategy(["downpour", "pull=2"], name).build(replica, world, optimizer)
        train(strategy, model, linear, steps[world.rank])
        strategy.drain()
        generated = sum(gradient(r, s, 157).double() for r in range(world.size) for s in range(steps[r]))
        assert torch.allclose(strategy.result().double(), -generated, rtol=1e-5, atol=1e-3)

    ranks(main, compute="exponential")


@pytest.mark.parametrize("name", NAMES)
def test_downpour_pushes_small_letters(name):
    """A letter to each of 3 owners; beside them travel marks: 16 bytes per letter, and 16 to and from rank 0."""
    letters = 3 * codec(name).payload_bytes(-(-(N * M + B) // 4), torch.float32)
    for _, sent in simulate(lambda w: stepped("downpour pull=1000", name, w, rank_two(w.rank), 10), 4):
        assert sent <= letters + 3 * 16 + 3 * 16
    for _, sent in simulate(lambda w: stepped("downpour pull=1000", None, w, rank_two(w.rank), 10), 4):
        assert sent >= 3 * 4 * ((N * M + B) // 4)
