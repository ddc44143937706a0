"""The contract that every strategy of the table keeps."""

from __future__ import annotations

import copy
from itertools import chain

import pytest
import torch
from torch import nn

from hpcasync.sim import SimWorld, simulate
from hpcasync.strategies import STRATEGIES
from hpcasync.world import World
from tests.training import (
    Vectors,
    build,
    classifier,
    digits_loss,
    full_loss,
    gradient,
    linear,
    train,
)
from tests.variants import LR, VARIANTS, Variant

every_strategy = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def agreed(world: World, vector: torch.Tensor) -> bool:
    root = vector.clone()
    world.broadcast(root)
    return torch.equal(root, vector)


@pytest.mark.sizes(3)  # real ranks: 1, 2 and 4
@every_strategy
def test_learns_digits(ranks, variant):
    def main(world: World):
        model = classifier()
        strategy = build(variant.words, world, model, lr=variant.lr, momentum=0.5)
        before = full_loss(strategy, model)
        world.barrier()
        train(strategy, model, digits_loss, variant.steps)
        strategy.drain()
        assert before > 2.2 > 1.3 > full_loss(strategy, model)

    ranks(main, compute="exponential")


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_entry_learns_digits(name):
    def main(world: World):
        model = classifier()
        strategy = build(name, world, model, lr=LR.get(name, 0.1))
        train(strategy, model, digits_loss, steps=60)
        strategy.drain()
        return full_loss(strategy, model)

    assert max(simulate(main, 4, compute="exponential")) < 2.0


@every_strategy
def test_all_ranks_deliver_the_same(ranks, variant):
    def main(world: World):
        model = classifier()
        strategy = build(variant.words, world, model, lr=0.1)
        train(strategy, model, digits_loss, steps=10)
        strategy.drain()
        assert agreed(world, strategy.result())

    ranks(main, compute="exponential")


@every_strategy
def test_the_ranks_start_from_the_parameters_of_rank_0(ranks, variant):
    def main(world: World):
        model = nn.Linear(3, 2)
        nn.init.constant_(model.weight, float(world.rank + 1))
        strategy = build(variant.words, world, model)
        assert strategy.result()[:6].tolist() == [1.0] * 6
        assert model.weight.unique().tolist() == [1.0]
        strategy.drain()

    ranks(main)


@every_strategy
def test_ends_cleanly_with_uneven_steps_and_loses_nothing(ranks, variant):
    def main(world: World):
        steps = [3 + 4 * ((rank + 1) % world.size) for rank in range(world.size)]
        model = Vectors((5, 3), (7,))
        strategy = build(variant.words, world, model)
        train(strategy, model, linear, steps[world.rank])
        strategy.drain()
        applied = torch.zeros(22, dtype=torch.float64)
        for step in range(max(steps)):
            made = [gradient(rank, step, 22).double() for rank in range(world.size) if step < steps[rank]]
            applied += sum(made) / {"mean": len(made), "share": world.size}.get(variant.applies, 1)
        overwrites = variant.words.startswith("hogwild") and not isinstance(world, SimWorld)  # Hogwild!
        if variant.applies != "other" and not overwrites:
            assert torch.allclose(strategy.result().double(), -applied, rtol=1e-6, atol=1e-4)
        assert agreed(world, strategy.result())
        assert strategy.staleness.count + strategy.dropped > 0

    ranks(main, compute="exponential")


@every_strategy
def test_a_rank_without_any_step_does_not_hang_the_others(ranks, variant):
    def main(world: World):
        model = Vectors((4,))
        strategy = build(variant.words, world, model)
        train(strategy, model, linear, steps=0 if world.rank == world.size - 1 else 6)
        strategy.drain()
        assert agreed(world, strategy.result())

    ranks(main)


@pytest.mark.parametrize(
    ("variant", "momentum"), [(variant, momentum) for variant in VARIANTS for momentum in variant.alone], ids=str
)
def test_size_1_equals_plain_pytorch_bit_for_bit(variant, momentum):
    from hpcasync.mpi import MPIWorld

    plain = classifier()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=momentum, fused=True)
    for step in range(20):
        optimizer.zero_grad()
        digits_loss(plain, 0, step).backward()
        optimizer.step()
    expected = torch.cat([p.detach().flatten() for p in plain.parameters()])

    def main(world: World):
        model = classifier()
        strategy = build(variant.words, world, model, lr=0.1, momentum=momentum)
        train(strategy, model, digits_loss, steps=20)
        strategy.drain()
        return strategy.result()

    assert torch.equal(simulate(main, 1)[0], expected)
    assert torch.equal(main(MPIWorld()), expected)


def test_stale_without_a_bound_is_sync_bit_for_bit(ranks):
    def main(world: World):
        results = []
        for words in ("sync", "stale bound=0"):
            model = classifier()
            strategy = build(words, world, model, lr=0.1, momentum=0.9)
            train(strategy, model, digits_loss, steps=15)
            strategy.drain()
            results.append(strategy.result())
        assert torch.equal(*results)

    ranks(main)


def trained(variant: Variant, world: World, strategy) -> list[torch.Tensor]:
    """What the end of a training leaves: the result; where that hangs on ties, the parameters before."""
    if not variant.ties:
        strategy.drain()
        return [strategy.result()]
    world.barrier()
    parameters = [pair.params.clone() for pair in strategy.replica.pairs]
    strategy.drain()
    return parameters


@every_strategy
def test_reading_the_result_changes_nothing(variant):
    def main(world: World, looks: bool):
        model = classifier()
        strategy = build(variant.words, world, model, lr=0.1)
        for step in range(12):
            train(strategy, model, digits_loss, 1, first=step)
            if looks and world.rank == 0:
                strategy.result()
        return trained(variant, world, strategy)

    # distinct compute times: a look may change the order of steps that end at the same instant
    looked = simulate(lambda world: main(world, True), 3, compute="exponential")
    blind = simulate(lambda world: main(world, False), 3, compute="exponential")
    assert all(map(torch.equal, chain(*looked), chain(*blind)))


@every_strategy
def test_a_restored_strategy_goes_on_identically(variant):
    def whole(world: World):
        model = classifier()
        strategy = build(variant.words, world, model, lr=0.1, momentum=0.9)
        train(strategy, model, digits_loss, 8)
        state = strategy.state_dict()
        world.barrier()
        train(strategy, model, digits_loss, 8, first=8)
        return state, trained(variant, world, strategy)

    before = simulate(whole, 3, compute="sqrt")  # no two steps end at the same instant

    def resumed(world: World):
        model = classifier()
        with torch.no_grad():
            model[0].weight.zero_()  # the state, not the start, decides
        strategy = build(variant.words, world, model, lr=0.1, momentum=0.9)
        strategy.load_state_dict(before[world.rank][0])
        world.barrier()
        train(strategy, model, digits_loss, 8, first=8)
        return trained(variant, world, strategy)

    after = simulate(resumed, 3, compute="sqrt")
    assert all(map(torch.equal, chain(*(end for _, end in before)), chain(*after)))


@every_strategy
def test_a_drained_strategy_goes_on_as_a_fresh_one_with_its_state(variant):
    """Ranks come to the pause at their own speed, after different numbers of steps."""

    def paused(world: World):
        model = classifier()
        strategy = build(variant.words, world, model, lr=0.1, momentum=0.9)
        train(strategy, model, digits_loss, 5 + 3 * world.rank)
        strategy.drain()
        state = strategy.state_dict()
        strategy.load_state_dict(copy.deepcopy(state))  # the optimizer goes on with the tensors that it is given
        train(strategy, model, digits_loss, 8, first=20)
        return state, trained(variant, world, strategy)

    before = simulate(paused, 3, compute="sqrt")  # no two steps end at the same instant

    def resumed(world: World):
        model = classifier()
        strategy = build(variant.words, world, model, lr=0.1, momentum=0.9)
        strategy.load_state_dict(before[world.rank][0])
        train(strategy, model, digits_loss, 8, first=20)
        return trained(variant, world, strategy)

    after = simulate(resumed, 3, compute="sqrt")
    assert all(map(torch.equal, chain(*(end for _, end in before)), chain(*after)))


@every_strategy
def test_mixed_dtypes_and_buffers(ranks, variant):
    """Two dtypes, a frozen layer, tied weights and BatchNorm in one model; buffers come out averaged."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.tied = nn.Linear(4, 4)
            self.tied.weight = self.a.weight
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.norm = nn.BatchNorm1d(4)
            self.wide = nn.Linear(4, 1).double()

    def loss(model: nn.Module, rank: int, step: int):
        x = torch.full((6, 4), float(rank + 1)) + torch.arange(6.0)[:, None]
        return model.wide(model.norm(model.frozen(model.tied(model.a(x)))).double()).square().mean()

    def main(world: World):
        torch.manual_seed(world.rank)
        model = Mixed()
        strategy = build(variant.words, world, model, lr=0.01)
        replica = strategy.replica
        assert [pair.memory.dtype for pair in replica.pairs] == [torch.float64, torch.float32]
        assert agreed(world, model.frozen.weight.data)
        train(strategy, model, loss, 5)
        strategy.drain()
        world.barrier()
        result = strategy.result()
        assert result.dtype == torch.float64
        assert result.shape == (5 + 16 + 4 + 4 + 8 + 8,)
        means = torch.cat([model.norm.running_mean, model.norm.running_var])
        world.allreduce(means)
        assert torch.allclose(result[-8:].float(), means / world.size)
        assert model.tied.weight is model.a.weight
        world.barrier()

    ranks(main)


def test_a_gradient_that_left_the_buffer_is_brought_home(ranks):
    def main(world: World):
        model = Vectors((3,), (2,))
        strategy = build("sync", world, model)
        for _ in range(4):
            model.zero_grad()  # sets the gradients to None, as plain loops do
            (model.p0.sum() * (world.rank + 1)).backward()  # p1 gets no gradient
            strategy.step()
        assert strategy.result().tolist() == [-4 * (world.size + 1) / 2] * 3 + [0.0] * 2
        strategy.drain()

    ranks(main)
