"""Downpour's family against its papers: what each algorithm is equal to, drops, and does to the momentum."""

from __future__ import annotations

import pytest
import torch

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.sim import simulate
from hpcasync.strategies import parse_strategy
from hpcasync.world import World
from tests.training import Vectors, build, classifier, digits_loss, full_loss, linear, train


def trained(words: str, size: int, compute: str, steps: int = 12, lr: float = 0.1, momentum: float = 0.0):
    def main(world: World):
        strategy = build(words, world, model := classifier(), lr, momentum)
        train(strategy, model, digits_loss, steps)
        world.barrier()
        return strategy.result(), strategy

    return simulate(main, size, compute=compute)


@pytest.mark.parametrize("words", ["server policy=ringmaster:inf", "server policy=dc:0", "server policy=quorum:1"])
def test_special_cases_are_plain_asynchronous_sgd(words):
    plain = trained("server", 4, "exponential")
    for (expected, _), (result, strategy) in zip(plain, trained(words, 4, "exponential"), strict=True):
        if "quorum" in words:  # drops whatever is late
            assert strategy.dropped > 0
        else:
            assert torch.equal(result, expected)
            assert strategy.dropped == 0


def test_server_makes_the_updates_that_downpour_makes():
    for momentum in (0.0, 0.9):  # which is each rank's own in both
        server, downpour = (trained(words, 4, "exponential", momentum=momentum) for words in ("server", "downpour"))
        for (a, one), (b, other) in zip(server, downpour, strict=True):
            assert torch.allclose(a, b, atol=1e-6)
            assert one.staleness.histogram == other.staleness.histogram


@pytest.mark.parametrize("words", ["rennala", "malenia", "backup policy=backup:0", "server policy=quorum:3:0.5"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equal_ranks_in_one_batch_are_synchronous(words, momentum):
    """Sums are made in another order, so not bit for bit."""
    sync = trained("sync", 4, "constant", momentum=momentum)
    for (expected, _), (result, strategy) in zip(sync, trained(words, 4, "constant", momentum=momentum), strict=True):
        assert torch.allclose(result, expected, atol=1e-5)
        assert strategy.dropped == 0
        assert strategy.staleness.histogram == {0: 12}


def test_backup_workers_wait_for_all_but_the_slowest():
    """With one backup, 3 of 4 ranks end their 12 steps of 1 s at 12 s; the slow one comes too late."""

    def main(world: World):
        strategy = build("backup", world, model := Vectors((2,)))
        train(strategy, model, linear, 12)
        ended = world.now()
        strategy.drain()
        return ended, strategy.dropped

    results = simulate(main, 4, compute="slow:3:2.5")
    assert [ended for ended, _ in results[:3]] == pytest.approx([12.0] * 3)
    assert [dropped for _, dropped in results[:3]] == [0] * 3
    assert results[3][1] > 0


@pytest.mark.parametrize(("grace", "late_is_in"), [(0.2, False), (0.4, True)])
def test_a_grace_window_takes_the_late_in(grace, late_is_in):
    """The fourth rank takes 1.3 s where the others take 1 s."""

    def main(world: World):
        strategy = build(f"server policy=quorum:3:{grace}", world, model := Vectors((2,)))
        train(strategy, model, linear, 1)
        return strategy.dropped, world.now()

    results = simulate(main, 4, compute="slow:3:1.3")
    assert [dropped for dropped, _ in results] == [0, 0, 0, 0 if late_is_in else 1]
    assert results[0][1] == pytest.approx(1.3 if late_is_in else 1 + grace, abs=0.002)


def test_ringmaster_drops_the_straggler_and_no_other():
    """Rank 3 takes 10 s where three others make 30 updates."""
    runs = trained("server policy=ringmaster:6", 4, "slow:3:10", steps=20)
    assert [strategy.dropped for _, strategy in runs[:3]] == [0, 0, 0]
    assert runs[3][1].dropped > 0
    assert max(strategy.staleness.max for _, strategy in runs) < 6


def test_a_rank_that_asks_begins_anew_instead_of_computing_for_nothing():
    """Ringmaster's algorithm 5: rank 3's steps have 10 slices of 1 s, and it asks between them."""

    def main(world: World):
        strategy = build("ringmaster", world, model := Vectors((2,)))
        renewed = 0
        for step in range(20):
            if world.rank == 3:
                for _ in range(9):
                    world.computed(0.0)
                    renewed += strategy.renew()
            linear(model, world.rank, step).backward()
            world.computed(0.0)
            strategy.step()
        strategy.drain()
        return renewed, strategy.dropped

    results = simulate(main, 4)
    assert [renewed for renewed, _ in results[:3]] == [0, 0, 0]
    assert results[3][0] >= 8  # the others make 20 s of updates, 3 a second, and at a delay of 4 it begins anew


def test_ringleader_gives_every_rank_the_same_weight():
    """Rank r's gradient is always e_r. Rank 0 is 8 times as fast, and x moves along all axes alike."""

    def main(world: World):
        strategy = build("ringleader", world, model := Vectors((4,)))
        for _ in range(64 if world.rank == 0 else 8):
            model.p0[world.rank].backward()
            world.computed(0.0)
            strategy.step()
        world.barrier()
        return strategy.result(), strategy.staleness.max, strategy.dropped

    class Fast:
        def draw(self, rng, rank, step):
            return 1 / 8 if rank == 0 else 1.0 + rank / 64

    results = simulate(main, 4, compute=Fast())
    moved = -results[0][0]
    assert moved.min() > 4
    assert moved.max() - moved.min() < 1e-5
    assert max(staleness for _, staleness, _ in results) <= 2 * 4 - 2
    assert [dropped for *_, dropped in results] == [0] * 4


def test_kardam_drops_the_gradients_of_a_rank_gone_mad():
    """From step 10 on. (What it was like before is not known of a rank that begins mad: its first gradient counts.)"""

    def main(world: World, words: str):
        strategy = build(words, world, model := classifier(), lr=0.05)
        for step in range(60):
            digits_loss(model, world.rank, step).backward()
            if world.rank == 3 and step >= 10:
                strategy.replica.grads.mul_(1e3 * torch.randn((), generator=torch.Generator().manual_seed(step)))
            world.computed(0.0)
            strategy.step()
        world.barrier()
        return strategy.dropped, full_loss(strategy, model)

    kardam, unprotected = (
        simulate(lambda world, words=words: main(world, words), 4, compute="exponential")
        for words in ("kardam", "server")
    )
    assert kardam[3][0] >= 50
    assert kardam[0][1] < 1.8
    assert not unprotected[0][1] < 2.3


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_dana_alone_is_nesterov_bit_for_bit(momentum):
    plain = classifier()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=momentum, nesterov=True, fused=True)
    for step in range(12):
        optimizer.zero_grad()
        digits_loss(plain, 0, step).backward()
        optimizer.step()
    expected = torch.cat([p.detach().flatten() for p in plain.parameters()])
    assert torch.equal(trained("dana", 1, "constant", momentum=momentum)[0][0], expected)


def test_dana_of_two_ranks_by_its_equations():
    """f = x^2 / 2 and ranks in turn: the recursion of the docstring, written out."""
    lr, momentum, x, u = 0.1, 0.9, 0.0, [0.0, 0.0]
    seen = [0.0, 0.0]  # the parameters that each rank computes at
    for turn in range(12):
        rank = turn % 2
        u[rank] = momentum * u[rank] - lr * (seen[rank] - 1)
        x += u[rank]
        seen[rank] = x + momentum * sum(u)

    class InTurn:
        def draw(self, rng, rank, step):
            return 1 + 0.5 * rank * (step == 0)

    def main(world: World):
        model = Vectors((1,), dtypes=(torch.float64,))
        strategy = build("dana", world, model, lr, momentum)
        for _ in range(6):
            (0.5 * (model.p0 - 1).square()).sum().backward()
            world.computed(0.0)
            strategy.step()
        world.barrier()
        return float(strategy.result())

    assert simulate(main, 2, compute=InTurn()) == pytest.approx([x + momentum * sum(u)] * 2, rel=1e-12)


def test_dana_needs_plain_momentum():
    def main(world: World, optimizer: type[torch.optim.Optimizer], **options: float):
        replica = Replica(Vectors((2,)))
        parse_strategy(["dana"]).build(replica, world, optimizer(replica.parameters(), **options))

    with pytest.raises(UsageError, match=r"dana needs torch\.optim\.SGD with one momentum, not Adam"):
        simulate(lambda world: main(world, torch.optim.Adam), 2)
    with pytest.raises(UsageError, match="plain momentum, without dampening"):
        simulate(lambda world: main(world, torch.optim.SGD, momentum=0.9, dampening=0.5), 2)


def test_asynchrony_begets_momentum():
    """Mitliagkas et al., "Asynchrony begets Momentum", 2016, thm. 3: E[x_{t+1} - x_t] = mu E[x_t - x_{t-1}] - c E[x_t].

    With n ranks and memoryless compute mu = 1 - 1/n = 0.875. Every update kicks a coordinate of its own from 0 to 1;
    then the gradient pulls it back. The mean over these responses is fitted.
    """
    n, steps, lag = 8, 150, 60
    pull, responses = 0.05, []

    def main(world: World):
        model = Vectors((n * steps,))
        strategy = build("downpour", world, model)
        for step in range(steps):
            kicked = n * step + world.rank
            (0.5 * pull * model.p0.square().sum() - model.p0[kicked]).backward()
            world.computed(0.0)
            strategy.step()
            responses.append((kicked, strategy.replica.params.clone()))

    simulate(main, n, compute="exponential")
    order = torch.tensor([kicked for kicked, _ in responses])
    x = torch.stack([params for _, params in responses])
    rows = torch.arange(len(order) - lag)
    y = torch.stack([x[rows + k, order[rows]] for k in range(lag)]).double().mean(dim=1)
    turn = y.diff()
    inputs = torch.stack([turn[:-1], y[1:-1]], dim=1)
    momentum, _ = torch.linalg.lstsq(inputs, turn[1:, None]).solution.flatten().tolist()
    assert momentum == pytest.approx(0.87, abs=0.01)
