"""One neuron at a time: selection, leases, rates, clocks, and what is held of gradients and optimizer state."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.sim import simulate
from hpcasync.strategies import parse_strategy
from hpcasync.strategies.neuron import Neuron
from hpcasync.world import RankFailed, World
from tests.training import Vectors, build, classifier, digits_loss, full_loss, gradient, linear, train

SELECTS = ["ready", "cyclic", "random", "greedy"]
every_select = pytest.mark.parametrize("select", SELECTS)


def neuron(words: str, world: World, model: nn.Module, lr: float = 1.0, momentum: float = 0.0) -> Neuron:
    strategy = build(f"neuron {words}", world, model, lr, momentum)
    assert isinstance(strategy, Neuron)
    return strategy


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


# Several ranks


@settings(max_examples=25, deadline=None)
@given(
    select=st.sampled_from(SELECTS),
    steps=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    block=st.integers(1, 3),
    network=st.sampled_from([(0.0, 0.0), (0.3, 0.0), (0.05, 0.01)]),
    seed=st.integers(0, 9),
)
def test_with_leases_nobody_updates_what_another_has_updated_since_it_was_read(select, steps, block, network, seed):
    """Every update is counted and arrives once, and with a lease its staleness is 0."""

    def main(world: World):
        strategy = neuron(f"select={select} block={block}", world, model := Vectors((5, 3), (4, 1)))
        gradients = torch.zeros(19)
        for step in range(steps[world.rank]):
            before = strategy.replica.params.clone()
            train(strategy, model, linear, 1, first=step)
            if select == "ready":
                gradients += gradient(world.rank, step, 19)
            elif world.size == 1:
                gradients += before - strategy.replica.params
        strategy.drain()
        return strategy.result(), gradients, strategy.staleness, strategy.versions().sum(), strategy.dropped

    alpha, beta = network
    ended = simulate(main, len(steps), compute="exponential", seed=seed, alpha=alpha, beta=beta)
    results, gradients, staleness, versions, dropped = zip(*ended, strict=True)
    assert all(torch.equal(result, results[0]) for result in results)
    assert sum(each.count for each in staleness) == versions[0]
    if select == "ready" or len(steps) == 1:
        assert torch.allclose(results[0], -sum(gradients) if select == "ready" else -gradients[0], atol=1e-4)
    if select != "ready":
        assert all(each.max == 0 for each in staleness)
        assert versions[0] + sum(dropped) <= sum(steps)
    if select == "greedy":
        assert versions[0] + sum(dropped) == sum(steps)


def quadratic(n: int, words: str) -> float:
    """|x| after 40 steps, from |x| = 2, of n equally fast ranks on f = |x|^2 / 2, with the exact step 1 / L."""

    def main(world: World) -> Tensor:
        model = Vectors((4, 1))
        nn.init.ones_(model.p0)
        strategy = neuron(words, world, model)
        train(strategy, model, lambda m, rank, step: m.p0.square().sum() / 2, 40)
        strategy.drain()
        return strategy.result()

    return float(simulate(main, n, alpha=0.01)[0].norm())


def test_greedy_needs_its_lease():
    """n equally fast ranks see the same largest gradient. Without leases they step on it n times: x_b -> (1 - n) x_b.

    So it is stable up to staleness 1, and diverges from staleness 2 on.
    """
    assert [quadratic(n, "select=greedy lease=on") for n in (1, 2, 3, 4)] == [0.0] * 4
    assert quadratic(2, "select=greedy lease=off") <= 2
    assert quadratic(3, "select=greedy lease=off") > 1e6
    assert quadratic(4, "select=greedy lease=off") > 1e10


@every_select
def test_nobody_waits(select):
    """Though there are more ranks than neurons, and one of them is slow."""

    def main(world: World) -> float:
        strategy = neuron(f"select={select}", world, model := Vectors((3, 2)))
        before = world.waited
        train(strategy, model, linear, 10)
        waited = world.waited - before
        strategy.drain()
        return waited

    assert simulate(main, 5, compute="slow:2:8") == [0.0] * 5


def test_a_slow_rank_is_dropped_only_when_all_it_kept_has_changed():
    def main(world: World) -> int:
        strategy = neuron("select=greedy", world, model := Vectors((3, 2)))
        train(strategy, model, linear, 24 if world.rank else 3)
        strategy.drain()
        return strategy.dropped

    slow, fast = simulate(main, 2, compute="slow:0:8")
    assert slow > 0
    assert fast <= 3


def test_staleness_layer_by_layer(ranks):
    def main(world: World) -> None:
        strategy = neuron("", world, model := classifier(), lr=0.05)
        train(strategy, model, digits_loss, 5)
        strategy.drain()
        assert strategy.layer_staleness.keys() == {"0.weight", "2.weight"}
        assert strategy.layer_staleness["0.weight"].count == 5 * 32
        assert strategy.layer_staleness["2.weight"].count == 5 * 10
        assert strategy.staleness.count == 5 * 42
        world.barrier()
        assert strategy.versions().tolist() == [5 * world.size] * 42

    ranks(main, compute="exponential")


@pytest.mark.sizes(3)  # real ranks: 1, 2 and 4
@pytest.mark.parametrize("words", ["select=cyclic", "select=random", "select=greedy", "select=random lease=off"])
def test_real_ranks_learn_too(ranks, words):
    def main(world: World) -> None:
        strategy = neuron(f"block=8 {words}", world, model := classifier(), lr=0.5)
        before = full_loss(strategy, model)
        train(strategy, model, digits_loss, 60)
        strategy.drain()
        assert full_loss(strategy, model) < before - 0.15
        world.barrier()
        versions = strategy.versions().sum()
        counts = torch.tensor([float(strategy.staleness.count)])
        world.allreduce(counts)
        assert counts == versions
        if "lease=off" not in words:
            assert strategy.staleness.max == 0

    ranks(main, compute="exponential")


@pytest.mark.parametrize("select", ["cyclic", "random"])
def test_the_lease_of_a_dead_rank_blocks_nothing(select):
    def main(world: World):
        replica = Replica(model := Vectors((3, 16)))
        optimizer = torch.optim.SGD(replica.parameters(), lr=1.0)
        strategy = parse_strategy(["neuron", f"select={select}"]).build(replica, world, optimizer)
        try:
            train(strategy, model, linear, 100)
        except RankFailed:
            world = world.shrink()
            replica.reset_grads()
            strategy = parse_strategy(["neuron", f"select={select}"]).build(replica, world, optimizer)
            train(strategy, model, linear, 50)
            strategy.drain()
            return strategy.versions().tolist(), strategy.dropped

    first, dead, second = simulate(main, 3, compute="exponential", fail={1: 4.5})
    assert dead is None
    assert min(first[0]) > 10
    assert sum(first[0]) + first[1] + second[1] == 100


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


def test_an_optimizer_that_does_not_fit():
    def with_steps(world: World) -> None:
        replica = Replica(classifier())
        optimizer = torch.optim.SGD(replica.parameters(), lr=0.1, momentum=0.9)
        optimizer.step()
        Neuron(replica, world, optimizer)

    def of_something_else(world: World) -> None:
        Neuron(Replica(classifier()), world, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))

    with pytest.raises(UsageError, match="no step yet"):
        simulate(with_steps, 1)
    with pytest.raises(UsageError, match=r"replica.parameters\(\)"):
        simulate(of_something_else, 1)
