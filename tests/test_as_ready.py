"""Reducing, and updating, inside backward(): buckets, equality with sync and with plain PyTorch, memory."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hpcasync.sim import SimWorld, simulate
from hpcasync.strategies.bucket import divide
from hpcasync.world import World
from tests.buckets import OPTIMIZERS, every_cap, every_verb, make, network, network_loss, trained
from tests.training import Vectors, linear, train


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 60))
def test_every_tensor_is_in_one_bucket_of_neighbours_within_the_cap(sizes, cap):
    buckets = divide(sizes, cap)
    assert [index for first, stop in reversed(buckets) for index in range(first, stop)] == list(range(len(sizes)))
    assert all(first < stop for first, stop in buckets)
    for first, stop in buckets:
        assert sum(sizes[first:stop]) <= cap or sum(size > 0 for size in sizes[first:stop]) == 1
    for (first, stop), (before, _) in pairwise(buckets):
        assert sum(sizes[first:stop]) + sizes[first - 1] > cap  # no bucket could have taken one tensor more
        assert before < first


class Recorder:
    """A World around a World that notes the memory of what is reduced."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.reduced: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def iallreduce(self, buffer: Tensor) -> Any:
        self.reduced.append((buffer.data_ptr(), buffer.data_ptr() + buffer.nbytes))
        return self._world.iallreduce(buffer)


shapes = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=8)


@given(shapes, st.integers(1, 300), st.sampled_from([(torch.float32,), (torch.float32, torch.float64)]))
def test_every_element_and_the_count_are_reduced_once_a_step(shapes, cap, dtypes):
    def main(world: World) -> None:
        recorder = Recorder(world)
        model = Vectors(*shapes, dtypes=dtypes)
        strategy = make(f"as_ready bucket_bytes={cap}", recorder, model)
        for _ in range(2):
            recorder.reduced.clear()
            train(strategy, model, linear, 1)
            for pair in strategy.replica.pairs:
                start = pair.message.data_ptr()
                stop = start + pair.message.nbytes
                mine = sorted(span for span in recorder.reduced if start <= span[0] < stop)
                assert [a for a, _ in mine] == [start, *(b for _, b in mine[:-1])]
                assert mine[-1][1] == stop

    simulate(main, 1)


@every_cap
@every_verb
def test_equals_sync_bit_for_bit(ranks, name, cap):
    def main(world: World):
        expected = trained("sync", world, network(), network_loss, 6)
        assert torch.equal(trained(f"{name} bucket_bytes={cap}", world, network(), network_loss, 6), expected)

    ranks(main, compute="exponential")


@every_cap
@every_verb
def test_equals_sync_with_uneven_steps(ranks, name, cap):
    def main(world: World):
        steps = 3 + 2 * ((world.rank + 1) % world.size)
        expected = trained("sync", world, network(), network_loss, steps, "adamw")
        assert torch.equal(
            trained(f"{name} bucket_bytes={cap}", world, network(), network_loss, steps, "adamw"), expected
        )

    ranks(main, compute="exponential")


def plain(optimizer: str, fused: bool, steps: int) -> Tensor:
    model = network()
    update = OPTIMIZERS[optimizer](model.parameters(), fused)
    for step in range(steps):
        update.zero_grad()
        network_loss(model, 0, step).backward()
        update.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# as_ready makes one fused step on the flat vector, which rounds its last elements as those of one tensor
@pytest.mark.parametrize(("name", "fused"), [("as_ready", False), ("in_backward", False), ("in_backward", True)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@every_cap
def test_size_1_equals_plain_pytorch_bit_for_bit(name, cap, fused, optimizer):
    def main(world: World) -> Tensor:
        model = network()
        strategy = make(f"{name} bucket_bytes={cap}", world, model, optimizer, fused)
        train(strategy, model, network_loss, 20)
        strategy.drain()
        return strategy.result()

    from hpcasync.mpi import MPIWorld

    expected = plain(optimizer, fused, 20)
    assert torch.equal(simulate(main, 1)[0], expected)
    assert torch.equal(main(MPIWorld()), expected)


@every_cap
def test_in_backward_holds_one_bucket_of_gradient(ranks, cap):
    def main(world: World):
        model = network()
        strategy = make(f"in_backward bucket_bytes={cap}", world, model)
        sizes = [p.nbytes for p in model.parameters()]
        largest = max(sum(sizes[first:stop]) for first, stop in divide(sizes, cap))
        with_gradient = []
        model[0].weight.register_post_accumulate_grad_hook(  # the last gradient of all
            lambda _: with_gradient.extend(p for p in model.parameters() if type(p.grad) is torch.Tensor)  # no mark
        )
        train(strategy, model, network_loss, 3)
        strategy.drain()
        assert with_gradient == []
        assert all(p.grad is None for p in model.parameters())
        assert strategy.replica.grads.numel() == 0
        if world.can_wait_in_backward:
            assert strategy.peak_gradient_bytes == largest
        else:
            assert sum(sizes) < strategy.peak_gradient_bytes <= sum(sizes) + largest

    ranks(main)


class Shuffled(nn.Module):
    """Layers that run in another order than they are listed, some twice, one only by rank 0; weights of 68 kB."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = (nn.Linear(130, 130) for _ in range(4))
        self.tied = nn.Linear(130, 130)
        self.tied.weight = self.c.weight

    def forward(self, x: Tensor, rank: int) -> Tensor:
        x = self.tied(self.c(self.b(torch.tanh(self.c(x)))).tanh())
        return (x + self.d(x) if rank == 0 else x).square().mean()


def shuffled_loss(model: nn.Module, rank: int, step: int) -> Tensor:
    return model(torch.randn(4, 130, generator=torch.Generator().manual_seed(1000 * rank + step)), rank)


@every_cap
@every_verb
def test_layers_out_of_order_tied_or_unused(ranks, name, cap):
    """Layer a is used by nobody, d by rank 0 only, c's weight three times; buckets still go in one order."""

    def main(world: World):
        expected = trained("sync", world, Shuffled(), shuffled_loss, 4)
        assert torch.equal(trained(f"{name} bucket_bytes={cap}", world, Shuffled(), shuffled_loss, 4), expected)

    ranks(main)


def test_only_a_simulated_rank_among_others_cannot_wait_in_backward(ranks):
    def main(world: World):
        assert world.can_wait_in_backward == (world.size == 1 or not isinstance(world, SimWorld))

    ranks(main)
