"""One neuron at a time: rates and clocks of layers, gradients that are missing or set by hand, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.sim import simulate
from hpcasync.strategies import parse_strategy
from hpcasync.strategies.neuron import Neuron
from hpcasync.world import World
from tests.neurons import every_select, neuron
from tests.training import Vectors, classifier, digits_loss, gradient, linear, train

# Rates and clocks


def test_rates(ranks):
    def main(world: World) -> None:
        strategy = neuron("rates=p0:0.5,p1:2", world, model := Vectors((2, 3), (4, 1)))
        train(strategy, model, linear, 4)
        strategy.drain()
        generated = sum(gradient(rank, step, 10) for rank in range(world.size) for step in range(4))
        rates = torch.tensor([0.5] * 6 + [2.0] * 4)
        assert torch.allclose(strategy.result(), -rates * generated, atol=1e-4)
        world.barrier()

    ranks(main, compute="exponential")


def test_a_rate_is_of_the_optimizers_learning_rate_at_that_time():
    def main(world: World) -> list[float]:
        strategy = neuron("rates=0.5", world, model := Vectors((1, 1)))
        for lr in (1.0, 8.0):
            strategy.optimizer.param_groups[0]["lr"] = lr
            train(strategy, model, lambda m, r, s: m.p0.sum(), 1)
        assert strategy.optimizer.param_groups[0]["lr"] == 8.0
        return strategy.result().tolist()

    assert simulate(main, 1)[0] == [-4.5]


@pytest.mark.parametrize(
    ("words", "steps", "expected"),
    [
        ("select=ready periods=spread:3", 12, [12, 6, 4, 12]),
        ("select=ready periods=p1:6", 12, [12, 12, 12, 2]),
        ("select=cyclic periods=spread:3", 44, [18, 9, 6, 11]),  # in 6 rounds: 6, 3, 2 and 6 of 17
        ("select=cyclic periods=2", 8, [2, 2, 2, 2]),
        ("select=greedy periods=3", 12, None),  # nothing is due in two of three steps
    ],
)
def test_clocks(words, steps, expected):
    def main(world: World) -> list[int]:
        strategy = neuron(words, world, model := Vectors((3, 2), (1, 2)))
        train(strategy, model, linear, steps)
        return strategy.versions().tolist()

    counts = simulate(main, 1)[0]
    if expected is None:
        assert sum(counts) == steps // 3
    elif words == "select=cyclic periods=spread:3":
        assert sum(counts) == steps
        assert counts[0] == pytest.approx(2 * counts[1], abs=1) == pytest.approx(3 * counts[2], abs=3)
    else:
        assert counts == expected


# Odds and ends


def test_a_neuron_without_a_gradient_stays_and_its_lease_is_given_back():
    def main(world: World) -> list[int]:
        strategy = neuron("select=cyclic", world, model := Vectors((1, 2), (1, 2)))
        train(strategy, model, lambda m, rank, step: m.p0.sum(), 4)
        train(strategy, model, None, 2)
        strategy.drain()
        return strategy.versions().tolist()

    assert simulate(main, 1)[0] == [2, 0]


@every_select
def test_a_gradient_set_by_hand_counts(select):
    def main(world: World) -> Tensor:
        strategy = neuron(f"select={select}", world, model := Vectors((1, 2)))
        model.p0.grad = torch.tensor([[1.0, 2.0]])
        world.computed(0.0)
        strategy.step()
        return strategy.result()

    assert simulate(main, 1)[0].tolist() == [-1.0, -2.0]


def test_a_second_backward_in_a_step_is_refused():
    def main(world: World) -> None:
        neuron("", world, model := classifier())
        for step in range(2):
            digits_loss(model, 0, step).backward()

    with pytest.raises(UsageError, match="one backward"):
        simulate(main, 1)


@pytest.mark.parametrize("words", ["block=0", "rates=0", "periods=0", "select=best", "lease=maybe"])
def test_values_out_of_range(words):
    with pytest.raises(UsageError, match=words.split("=")[0]):
        simulate(lambda world: neuron(words, world, classifier()), 1)


def test_an_optimizer_that_has_made_a_step_keeps_its_state():
    def main(world: World, name: str) -> torch.Tensor:
        replica = Replica(model := classifier())
        optimizer = torch.optim.SGD(replica.parameters(), lr=0.1, momentum=0.9)
        digits_loss(model, 0, 0).backward()
        optimizer.step()
        replica.zero_grads()
        strategy = parse_strategy([name]).build(replica, world, optimizer)
        train(strategy, model, digits_loss, 2, first=1)
        return strategy.result()

    whole, by_neuron = (simulate(lambda world, name=name: main(world, name), 1)[0] for name in ("sync", "neuron"))
    assert torch.allclose(whole, by_neuron, rtol=0, atol=1e-6)


def test_an_optimizer_of_something_else():
    def main(world: World) -> None:
        Neuron(Replica(classifier()), world, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))

    with pytest.raises(UsageError, match=r"replica.parameters\(\)"):
        simulate(main, 1)
