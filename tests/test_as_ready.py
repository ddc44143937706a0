"""Reducing, and updating, inside backward(): buckets, equality with sync and with plain PyTorch, memory, misuse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.sim import SimWorld, simulate
from hpcasync.strategies import Strategy, parse_strategy
from hpcasync.strategies.bucket import divide
from hpcasync.world import RankFailed, World
from tests.training import Loss, Vectors, linear, train

CAPS = (1, 5000, 1 << 20)  # a bucket per tensor, some of several tensors, one bucket
OPTIMIZERS = {
    "momentum": lambda p, fused: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1, fused=fused),
    "adam": lambda p, fused: torch.optim.Adam(p, lr=0.01, fused=fused),
    "adamw": lambda p, fused: torch.optim.AdamW(p, lr=0.01, fused=fused),
}
every_verb = pytest.mark.parametrize("name", ["as_ready", "in_backward"])
every_cap = pytest.mark.parametrize("cap", CAPS)


def make(words: str, world: World, model: nn.Module, optimizer: str = "momentum", fused: bool = False) -> Strategy:
    """Not fused unless told: fused kernels round an element by whether it is among a tensor's last few."""
    replica = Replica(model)
    return parse_strategy(words.split()).build(replica, world, OPTIMIZERS[optimizer](replica.parameters(), fused))


def network() -> nn.Module:
    """38,311 parameters of odd shapes: enough for MPIWorld to reduce where they lie, in the order of the ranks."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(101, 213), nn.ReLU(), nn.Linear(213, 77), nn.Tanh(), nn.Linear(77, 1), nn.Flatten(0))


def network_loss(model: nn.Module, rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    x = torch.randn(8, 101, generator=generator)
    return F.mse_loss(model(x), x.sum(dim=1))


def trained(words: str, world: World, model: nn.Module, loss: Loss, steps: int, optimizer: str = "momentum") -> Tensor:
    strategy = make(words, world, model, optimizer)
    train(strategy, model, loss, steps)
    strategy.drain()
    return strategy.result()


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


@settings(deadline=None)
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
            lambda _: with_gradient.extend(p for p in model.parameters() if p.grad is not None)
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


@every_verb
def test_several_dtypes(ranks, name):
    def main(world: World):
        model = Vectors((30,), (5, 3), (7,), (11,), dtypes=(torch.float32, torch.float64, torch.bfloat16))
        strategy = make(f"{name} bucket_bytes=100", world, model)
        for _ in range(2):
            (sum(p.sum() for p in model.parameters()) * (world.rank + 1)).backward()
            strategy.step()
        strategy.drain()
        mean = (world.size + 1) / 2
        first = 0.01 * mean  # learning rate 0.01, momentum 0.9, weight decay 0.1
        expected = -first - 0.01 * (0.9 * mean + mean - 0.1 * first)
        for p in model.parameters():
            assert torch.allclose(p.double(), torch.full(p.shape, expected).double(), rtol=2e-2)

    ranks(main)


@every_verb
def test_gradients_set_by_hand_or_forgotten(ranks, name):
    def main(world: World):
        model = Vectors((3,), (2,))
        strategy = make(name, world, model)
        model.zero_grad()  # sets the gradients to None, as plain loops do
        (model.p0.sum() * (world.rank + 1)).backward()
        model.p1.grad = torch.full((2,), 2.0)
        strategy.step()
        mean = (world.size + 1) / 2
        assert torch.allclose(strategy.result(), torch.tensor([-0.01 * mean] * 3 + [-0.02] * 2))
        strategy.drain()

    ranks(main)


@every_verb
def test_a_backward_without_its_step_still_counts(ranks, name):
    def main(world: World):
        model = Vectors((4,))
        strategy = make(name, world, model)
        if world.rank == 0:
            (3 * model.p0.sum()).backward()
        strategy.drain()
        assert torch.allclose(strategy.result(), torch.full((4,), -0.03))

    ranks(main)


@every_verb
def test_a_second_backward_in_a_step_is_refused(name):
    def main(world: World) -> None:
        model = Vectors((4,), (3,))
        strategy = make(name, world, model)
        model.p0.sum().backward()
        model.p1.sum().backward()  # other parameters: nothing is wrong with that
        strategy.step()
        assert torch.allclose(strategy.result(), torch.full((7,), -0.01))
        model.p1.sum().backward()
        with pytest.raises(UsageError, match=r"one backward\(\) per step\(\)"):
            model.p1.sum().backward()

    simulate(main, 1)


@every_verb
def test_a_strategy_takes_the_place_of_an_earlier_one(ranks, name):
    """As after a failure: the replica and the optimizer stay, the strategy is built again."""

    def main(world: World):
        model = network()
        replica = Replica(model)
        optimizer = OPTIMIZERS["adamw"](replica.parameters(), False)
        for first in (0, 3):
            strategy = parse_strategy([name, "bucket_bytes=5000"]).build(replica, world, optimizer)
            train(strategy, model, network_loss, 3, first)
        strategy.drain()
        assert torch.equal(strategy.result(), trained("sync", world, network(), network_loss, 6, "adamw"))

    ranks(main)


@every_verb
def test_a_restored_strategy_goes_on_identically_with_adamw(ranks, name):
    def main(world: World):
        models = network(), network()
        whole, resumed = (make(f"{name} bucket_bytes=5000", world, model, "adamw") for model in models)
        train(whole, models[0], network_loss, 3)
        resumed.load_state_dict(whole.state_dict())
        for strategy, model in zip((whole, resumed), models, strict=True):
            train(strategy, model, network_loss, 3, first=3)
            strategy.drain()
        assert torch.equal(whole.result(), resumed.result())

    ranks(main)


@every_verb
def test_a_learning_rate_schedule_is_followed(name):
    def schedule(optimizer: torch.optim.Optimizer, step: Callable[[int], None]) -> None:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.3)
        for i in range(6):
            step(i)
            scheduler.step()

    def main(world: World) -> Tensor:
        model = network()
        strategy = make(f"{name} bucket_bytes=5000", world, model, "adam")
        schedule(strategy.optimizer, lambda i: train(strategy, model, network_loss, 1, first=i))
        return strategy.result()

    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters(), False)

    def step(i: int) -> None:
        optimizer.zero_grad()
        network_loss(model, 0, i).backward()
        optimizer.step()

    schedule(optimizer, step)
    assert torch.equal(simulate(main, 1)[0], flat(model.parameters()))


def flat(parameters: Iterable[Tensor]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters])


@every_verb
def test_a_cap_below_one_byte_is_refused(name):
    with pytest.raises(UsageError, match="bucket_bytes=0: a bucket holds at least 1 byte"):
        simulate(lambda world: make(f"{name} bucket_bytes=0", world, Vectors((2,))), 1)


def test_in_backward_refuses_an_optimizer_that_has_made_steps():
    def main(world: World) -> None:
        replica = Replica(model := Vectors((2,)))
        optimizer = OPTIMIZERS["adam"](replica.parameters(), False)
        linear(model, 0, 0).backward()
        optimizer.step()
        with pytest.raises(UsageError, match="made no step yet"):
            parse_strategy(["in_backward"]).build(replica, world, optimizer)

    simulate(main, 1)


@every_verb
@pytest.mark.parametrize("call", [7, 12, 13, 14, 15, 16, 17, 22, 30])
def test_a_death_is_told_by_step_and_not_inside_backward(name, call):
    def main(world: World) -> Tensor:
        model = network()
        replica = Replica(model)
        optimizer = OPTIMIZERS["momentum"](replica.parameters(), False)
        while True:
            in_backward = False
            try:
                strategy = parse_strategy([name, "bucket_bytes=5000"]).build(replica, world, optimizer)
                for step in range(6):
                    loss = network_loss(model, world.rank, step)
                    in_backward = True
                    loss.backward()
                    in_backward = False
                    world.computed(0.0)
                    strategy.step()
                strategy.drain()
                return strategy.result()
            except RankFailed:
                assert not in_backward
                world = world.shrink()

    survivor, dead, other = simulate(main, 3, compute="exponential", fail={1: call})
    assert dead is None
    assert torch.equal(survivor, other)
    assert survivor.isfinite().all()


def test_only_a_simulated_rank_among_others_cannot_wait_in_backward(ranks):
    def main(world: World):
        assert world.can_wait_in_backward == (world.size == 1 or not isinstance(world, SimWorld))

    ranks(main)
