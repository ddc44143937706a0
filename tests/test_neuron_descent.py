"""One neuron at a time on one rank: coordinate descent as in the books, and what is held of gradients and state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hpcasync.replica import Replica
from hpcasync.sim import simulate
from hpcasync.strategies import parse_strategy
from hpcasync.strategies.neuron import Neuron
from hpcasync.world import World
from tests.neurons import every_select, neuron
from tests.training import Vectors, classifier, digits_loss, train


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def alone(words: str, model: nn.Module, steps: int, lr: float = 0.1, momentum: float = 0.0) -> Neuron:
    """A strategy with which one rank has trained ``model`` on digits."""

    def main(world: World) -> Neuron:
        strategy = neuron(words, world, model, lr, momentum)
        train(strategy, model, digits_loss, steps)
        strategy.drain()
        return strategy

    return simulate(main, 1)[0]


def plain(model: nn.Module, steps: int, momentum: float) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, fused=True)
    for step in range(steps):
        optimizer.zero_grad()
        digits_loss(model, 0, step).backward()
        optimizer.step()
    return flat(model)


# One rank: coordinate descent as in the books


@every_select
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_block_is_sgd_bit_for_bit(select, momentum):
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    expected = plain(copy.deepcopy(model), 20, momentum)
    alone(f"select={select} block=10", model, 20, momentum=momentum)
    assert torch.equal(flat(model), expected)


@pytest.mark.parametrize("block", [1, 7])
def test_ready_is_sgd_bit_for_bit_whatever_the_block(block):
    model = classifier()
    alone(f"block={block}", model, 20)
    assert torch.equal(flat(model), plain(classifier(), 20, 0.0))


def by_hand(steps: int, choose) -> nn.Module:
    """Block coordinate descent on digits: in step t, rows ``choose(t, gradients of all 42 neurons)``."""
    model = classifier()
    rows = [(layer, i) for layer in (model[0], model[2]) for i in range(layer.out_features)]
    for step in range(steps):
        model.zero_grad()
        digits_loss(model, 0, step).backward()
        norms = torch.cat([layer.weight.grad.square().sum(1) + layer.bias.grad**2 for layer in (model[0], model[2])])
        layer, row = rows[choose(step, norms)]
        with torch.no_grad():
            layer.weight[row] -= 0.1 * layer.weight.grad[row]
            layer.bias[row] -= 0.1 * layer.bias.grad[row]
    return model


def test_round_robin_is_block_coordinate_descent():
    model = classifier()
    strategy = alone("select=cyclic", model, 100)
    assert torch.allclose(flat(model), flat(by_hand(100, lambda step, _: step % 42)), atol=1e-6)
    assert strategy.versions().tolist() == [3] * 16 + [2] * 26


def test_greedy_takes_the_largest_gradient():
    model = classifier()
    alone("select=greedy", model, 100)
    assert torch.allclose(flat(model), flat(by_hand(100, lambda _, norms: int(norms.argmax()))), atol=1e-6)


def test_greedy_measures_with_the_rates():
    """Gauss-Southwell-Lipschitz: argmax |g_b|^2 / L_b."""

    def main(world: World) -> list[int]:
        strategy = neuron("select=greedy rates=p0:0.5,p1:1", world, model := Vectors((1, 2), (1, 2)))
        counts = []
        for first, second in ((3.0, 2.0), (3.0, 2.2)):  # 9/2 > 4, 9/2 < 4.84
            (model.p0[0, 0] * first + model.p1[0, 0] * second).backward()
            world.computed(0.0)
            strategy.step()
            counts.append(strategy.versions().tolist())
        return counts

    assert simulate(main, 1)[0] == [[1, 0], [1, 1]]


def test_random_draws_every_neuron():
    strategy = alone("select=random", classifier(), 400)
    assert strategy.versions().min() > 0
    assert strategy.versions().sum() == 400


# Memory


@pytest.mark.parametrize(
    ("words", "elements"),
    [
        ("select=cyclic", 64 + 32),  # rows of one neuron, and the bias that autograd hands over beside them
        ("select=random", 64 + 32),
        ("select=cyclic block=8", 8 * 64 + 32),
        ("select=ready", 64 * 32 + 32),  # the largest layer
        ("select=greedy", 64 * 32 + 32 + 65),  # and the largest neuron
    ],
)
def test_the_peak_of_gradient_memory_is_the_largest_block(words, elements):
    model = classifier()
    strategy = alone(words, model, 60)
    assert strategy.peak_gradient_bytes <= 4 * elements
    assert strategy.peak_gradient_bytes >= 4 * (elements - 65)
    assert all(p.grad is None for p in model.parameters())


def test_optimizer_state_is_made_block_by_block():
    def main(world: World) -> None:
        replica = Replica(model := classifier())
        optimizer = torch.optim.AdamW(replica.parameters())
        strategy = parse_strategy(["neuron", "select=cyclic"]).build(replica, world, optimizer)
        for step in range(50):
            train(strategy, model, digits_loss, 1, first=step)
            updated = strategy.versions()
            elements = 65 * int((updated[:32] > 0).sum()) + 33 * int((updated[32:] > 0).sum())
            held = sum(state["exp_avg"].numel() for state in optimizer.state.values())
            assert held == elements
        steps = sorted(int(state["step"]) for state in optimizer.state.values())
        assert steps == [1] * 2 * 34 + [2] * 2 * 8  # of each block's own clock

    simulate(main, 1)
