"""What every World promises, in closed forms of rank and size."""

from __future__ import annotations

import pytest
import torch

from hpcasync.errors import UsageError
from hpcasync.world import World, split

DTYPES = [torch.float32, torch.float64, torch.int64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [0, 1, 1000, 300_000])
def test_allreduce_sums_in_place(ranks, dtype, length):
    def main(world: World):
        buffer = torch.full((length,), world.rank + 1, dtype=dtype)
        world.allreduce(buffer)
        assert torch.equal(buffer, torch.full((length,), world.size * (world.size + 1) // 2, dtype=dtype))

    ranks(main)


def test_allreduces_in_flight_complete_in_any_order(ranks):
    def main(world: World):
        buffers = [torch.full((1000,), float(i + world.rank)) for i in range(5)]
        requests = [world.iallreduce(buffer) for buffer in buffers]
        for i in reversed(range(5)):
            requests[i].wait()
            assert requests[i].test()
            assert buffers[i].unique().tolist() == [world.size * i + world.size * (world.size - 1) / 2]

    ranks(main)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [0, 1, 300_001])
def test_buffers_of_the_world_are_summed_alike_by_both_verbs(ranks, dtype, length):
    def main(world: World):
        first, second = world.buffer(length, dtype), world.buffer(length, dtype)
        assert not first.any()
        for _ in range(3):
            first.copy_(torch.randint(9, (length,), generator=torch.Generator().manual_seed(world.rank)))
            second.copy_(first)
            expected = first.double().clone()
            world.allreduce(expected)
            request = world.iallreduce(first)
            world.allreduce(second)
            request.wait()
            assert torch.equal(first, second)
            assert torch.equal(first.double(), expected)

    ranks(main)


def test_spans_of_a_buffer_are_reduced_where_they_lie(ranks):
    def main(world: World):
        buffer = world.buffer(150_000)
        buffer.copy_(torch.arange(150_000.0) + world.rank)
        cuts = [(30_001, 150_000), (30_000, 30_001), (30_000, 30_000), (77, 30_000)]  # all but the first 77 elements
        requests = [world.iallreduce(buffer[start:stop]) for start, stop in cuts]
        for request in requests:
            request.wait()
        total = world.size * torch.arange(150_000.0) + world.size * (world.size - 1) / 2
        assert torch.equal(buffer[77:], total[77:])
        assert torch.equal(buffer[:77], torch.arange(77.0) + world.rank)

    ranks(main)


def test_more_reductions_in_flight_than_any_queue_holds(ranks):
    def main(world: World):
        buffers = [world.buffer(150_000) for _ in range(70)]
        for buffer in buffers:
            buffer.fill_(1.0)
        requests = [world.iallreduce(buffer) for buffer in buffers]
        for request in requests:
            request.wait()
        assert {float(buffer.min()) for buffer in buffers} == {float(world.size)}

    ranks(main)


def test_blocking_and_nonblocking_reductions_agree(ranks):
    def main(world: World):
        mine = torch.randn(10_001, generator=torch.Generator().manual_seed(world.rank))
        blocking, nonblocking = mine.clone(), mine.clone()
        world.allreduce(blocking)
        world.iallreduce(nonblocking).wait()
        assert torch.allclose(blocking, nonblocking, atol=1e-5)

    ranks(main)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool], ids=str)
def test_broadcast_overwrites_with_the_root(ranks, dtype):
    def main(world: World):
        for root in range(world.size):
            buffer = torch.full((7,), float(world.rank == root)).to(dtype)
            world.broadcast(buffer, root)
            assert buffer.tolist() == [1] * 7
        scalar = torch.tensor(world.rank)
        world.broadcast(scalar)
        assert scalar == 0

    ranks(main)


def test_the_node_has_the_leader_as_its_first_rank(ranks):
    def main(world: World):
        assert 0 <= world.node.rank < world.node.size <= world.size
        assert (world.node.leader == world.rank) == (world.node.rank == 0)

    ranks(main)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64], ids=str)
def test_pushes_of_all_ranks_add_up_at_every_rank(ranks, dtype):
    length, times = 600_001, 3  # several stripes, the last of them short

    def main(world: World):
        window = world.window(length, dtype)
        assert not window.local.any()
        world.barrier()
        ones = torch.ones(length, dtype=dtype)
        for _ in range(times):
            for rank in range(world.size):
                window.push(ones, rank)
            window.flush()
        world.barrier()
        assert window.local.unique().tolist() == [times * world.size]

    ranks(main)


def test_pull_and_push_at_an_offset(ranks):
    def main(world: World):
        window = world.window(10 + world.rank)  # lengths differ
        window.local.copy_(torch.arange(10 + world.rank) + 100 * world.rank)
        world.barrier()
        peer = (world.rank + 1) % world.size
        target = torch.empty(3)
        window.pull(target, peer, offset=peer)
        window.flush()
        assert target.tolist() == [101 * peer, 101 * peer + 1, 101 * peer + 2]
        world.barrier()
        window.push(torch.full((2,), 0.5), peer, offset=8 + peer)
        window.flush()
        world.barrier()
        assert window.local[8 + world.rank :].tolist() == [101 * world.rank + 8.5, 101 * world.rank + 9.5]
        assert window.local[: 8 + world.rank].tolist() == [100 * world.rank + i for i in range(8 + world.rank)]

    ranks(main)


def test_what_is_taken_by_all_ranks_is_what_was_pushed(ranks):
    times = 20

    def main(world: World):
        window = world.window(5000)
        world.barrier()
        taken, mine, part = torch.zeros(5000), torch.ones(5000), torch.empty(5000)
        for _ in range(times):
            window.push(mine, 0)
            window.flush()
            window.take(part, 0)
            window.flush()
            taken += part
        world.barrier()
        if world.rank == 0:
            taken += window.local
        world.allreduce(taken)
        assert taken.unique().tolist() == [times * world.size]

    ranks(main)


def test_a_part_may_be_empty(ranks):
    def main(world: World):
        window = world.window(1 if world.rank == 0 else 0)
        world.barrier()
        window.push(torch.ones(1), 0)
        window.push(torch.ones(0), world.size - 1)
        window.flush()
        world.barrier()
        assert window.local.tolist() == [world.size] * (world.rank == 0)

    ranks(main)


def test_what_does_not_fit_into_a_window_is_refused(ranks):
    def main(world: World):
        window = world.window(4 + world.rank)
        peer = world.size - 1
        for verb in (window.push, window.pull, window.take):
            name = verb.__name__
            for buffer, rank, offset, message in (
                (torch.zeros(1), world.size, 0, f"{name}: rank {world.size} is not one of 0 to {peer}"),
                (torch.zeros(1), -1, 0, f"{name}: rank -1 is not one of 0 to {peer}"),
                (torch.zeros(1).double(), peer, 0, "a buffer of torch.float64 for a window of torch.float32"),
                (torch.zeros(4)[::2], peer, 0, "not contiguous"),
                (torch.zeros(2), peer, 3 + peer, rf"does not fit into rank {peer}'s part of shape \({4 + peer},\)"),
                (torch.zeros(1), peer, -1, "at offset -1 does not fit"),
                (torch.zeros(2, 2), peer, 0, r"of shape \(2, 2\) at offset 0 does not fit"),
            ):
                with pytest.raises(UsageError, match=message):
                    verb(buffer, rank, offset)
        window.flush()
        assert not window.local.any()

    ranks(main)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_alltoall_and_allgather(ranks, dtype):
    def main(world: World):
        mine = 10 * world.rank + torch.arange(3 * world.size).to(dtype)  # three elements for each rank
        received, gathered = torch.zeros(3 * world.size, dtype=dtype), torch.zeros(2 * world.size, dtype=dtype)
        first = mine[:2].clone()
        request = world.ialltoall(mine, received)
        other = world.iallgather(first, gathered)
        other.wait()
        request.wait()
        assert received.tolist() == [10 * r + 3 * world.rank + i for r in range(world.size) for i in range(3)]
        assert gathered.tolist() == [10 * r + i for r in range(world.size) for i in range(2)]
        assert mine.tolist() == [10 * world.rank + i for i in range(3 * world.size)]

    ranks(main)


def test_a_window_freed_is_not_freed_again_at_the_end(ranks):
    def main(world: World):
        window, other = world.window(3), world.window(5)
        for rank in range(world.size):
            window.push(torch.ones(3), rank)
        window.free()
        other.push(torch.ones(5), world.size - 1)
        other.flush()
        world.barrier()
        assert other.local.unique().tolist() == [world.size * (world.rank == world.size - 1)]

    ranks(main)


def test_shared_memory_is_one_per_node(ranks):
    def main(world: World):
        memory = world.shared(world.size, torch.int64)
        memory[world.rank] = world.rank + 1
        world.barrier()
        if world.node.size == world.size:
            assert memory.tolist() == [rank + 1 for rank in range(world.size)]
        world.barrier()

    ranks(main)


def test_waiting_ends_when_the_condition_holds_and_is_counted(ranks):
    def main(world: World):
        window = world.window(1, torch.int64)
        world.computed(1.0)
        if world.rank == 0:
            for rank in range(world.size):
                window.push(torch.tensor([7]), rank)
            window.flush()
        world.wait_until(lambda: int(window.local) == 7)
        assert world.waited >= 0

    ranks(main)


def test_shards_cover_the_vector_once():
    for length in (0, 1, 7, 8, 1000):
        for size in (1, 2, 3, 8):
            shards = split(length, size)
            assert [i for start, stop in shards for i in range(start, stop)] == list(range(length))
            assert max(b - a for a, b in shards) - min(b - a for a, b in shards) <= 1
