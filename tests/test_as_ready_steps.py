"""Reducing, and updating, inside backward(), in unusual steps: by hand, twice, taken up again, cut by a death."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.sim import simulate
from hpcasync.strategies import parse_strategy
from hpcasync.world import RankFailed, World
from tests.buckets import OPTIMIZERS, every_verb, make, network, network_loss, trained
from tests.training import Vectors, train


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


@pytest.mark.parametrize("kind", ["adam", "momentum"])
def test_in_backward_goes_on_with_the_state_of_the_flat_parameter(kind):
    def main(world: World, name: str) -> Tensor:
        model = network()
        replica = Replica(model)
        optimizer = OPTIMIZERS[kind](replica.parameters(), False)
        network_loss(model, 0, 0).backward()
        optimizer.step()
        replica.zero_grads()
        strategy = parse_strategy([name]).build(replica, world, optimizer)
        train(strategy, model, network_loss, 2, first=1)
        return strategy.result()

    whole, by_tensor = (simulate(lambda world, name=name: main(world, name), 1)[0] for name in ("sync", "in_backward"))
    assert torch.allclose(whole, by_tensor, rtol=0, atol=1e-6)


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
