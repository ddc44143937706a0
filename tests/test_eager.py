"""Eager and solo SGD: gradients are stale by the bound at most, each counts once, and policies scale or drop them."""

from __future__ import annotations

import pytest
import torch

from hpcasync.errors import UsageError
from hpcasync.sim import simulate
from hpcasync.world import World
from tests.training import Vectors, build, gradient, linear, train


def test_eager_without_a_bound_is_sync(ranks):
    def main(world: World):
        results = []
        for words in ("sync", "eager bound=0"):
            strategy = build(words, world, model := Vectors((6,)))
            train(strategy, model, linear, 20)
            strategy.drain()
            results.append(strategy.result())
        assert torch.allclose(*results, atol=1e-4)

    ranks(main, compute="exponential")


@pytest.mark.parametrize("words", ["eager bound=3", "solo bound=3", "eager quorum=2 bound=1"])
def test_gradients_are_stale_by_at_most_the_bound_and_each_is_in_one_mean(words):
    bound, steps = int(words[-1]), 300

    def main(world: World):
        strategy = build(words, world, model := Vectors((6,)))
        sums, counts = torch.zeros(6, dtype=torch.float64), 0.0
        apply = strategy.replica.apply_mean

        def apply_and_add_up(optimizer, messages):
            nonlocal sums, counts
            sums, counts = sums + messages[0][:-1], counts + float(messages[0][-1])
            apply(optimizer, messages)

        strategy.replica.apply_mean = apply_and_add_up
        train(strategy, model, linear, steps)
        strategy.drain()
        return sums, counts, strategy.staleness, strategy.result()

    size = 4
    results = simulate(main, size, compute="pareto:1.5")
    generated = sum(gradient(rank, step, 6).double() for rank in range(size) for step in range(steps))
    for sums, counts, staleness, result in results:
        assert torch.allclose(sums, generated, rtol=0, atol=1e-6)
        assert counts == size * steps
        assert staleness.count == steps
        assert staleness.max <= bound + 1
        assert torch.equal(result, results[0][3])


def test_a_slow_rank_does_not_slow_the_others_down():
    steps = 400

    def main(world: World):
        strategy = build("eager bound=8", world, model := Vectors((2,)))
        train(strategy, model, None, steps if world.rank < 3 else steps // 4)
        ended, waited = world.now(), world.waited
        strategy.drain()
        return ended, waited

    for ended, waited in simulate(main, 4, compute="slow:3:4"):
        assert ended == pytest.approx(steps)
        assert waited == 0


def one_slow_rank(policy: str, steps: int = 20) -> list[tuple[float, float, int, dict[int, int]]]:
    """Ranks 0 and 1 have gradients of 1 in an element of their own; rank 1 takes 5 times as long. Both elements of the
    result, what was dropped, and the staleness, by rank."""

    def main(world: World):
        strategy = build(f"solo bound=1000 policy={policy}", world, model := Vectors((2,)))
        for _ in range(steps if world.rank == 0 else steps // 5):
            model.p0[world.rank].backward()
            world.computed(0.0)
            strategy.step()
        strategy.drain()
        mine, other = strategy.result().tolist()
        return mine, other, strategy.dropped, dict(strategy.staleness.histogram)

    return simulate(main, 2, compute="slow:1:5.1")


def test_policies_scale_or_drop_what_a_slow_rank_hands_in():
    """Each of rank 1's gradients meets 5 rounds of rank 0's that came meanwhile; its own last one too, if any."""
    plain, inverse, ringmaster = (one_slow_rank(policy)[0] for policy in ("async", "inverse", "ringmaster:3"))
    assert [dropped for *_, dropped, _ in one_slow_rank("ringmaster:3")] == [0, 4]
    assert ringmaster[1] == 0.0
    assert ringmaster[0] == pytest.approx(-20.0)
    assert plain[1] == pytest.approx(-4.0)
    assert inverse[1] == pytest.approx(-(1 / 5 + 3 / 6))
    assert inverse[2] == plain[2] == 0


def test_delay_compensation_in_eager_is_its_equation():
    """f = x²/2 on rank 0 alone in its rounds; rank 1's stale gradient g is handed in as g + lambda g² (now - then)."""

    def main(world: World, policy: str):
        model = Vectors((1,), dtypes=(torch.float64,))
        strategy = build(f"solo bound=1000 policy={policy}", world, model, lr=0.1)
        handed_in = []
        contribute = strategy._rounds.contribute

        def note(messages):
            handed_in.append((float(messages[0][0]), float(model.p0.detach()), strategy._applied))
            return contribute(messages)

        strategy._rounds.contribute = note
        for _ in range(1 if world.rank else 4):
            (0.5 * (model.p0 - 1).square()).sum().backward()
            world.computed(0.0)
            strategy.step()
        strategy.drain()
        return handed_in

    ((g, now, version),) = simulate(lambda world: main(world, "dc:0.5"), 2, compute="slow:1:3.5")[1]
    assert version == 3
    assert now != 0.0
    assert g == pytest.approx(-1 + 0.5 * now)


@pytest.mark.parametrize("policy", ["rennala", "ssp:2", "quorum:2", "gap", "dc_adaptive", "lipschitz"])
def test_eager_refuses_policies_that_say_who_waits_or_remember(policy):
    with pytest.raises(UsageError, match=f"policy={policy}: eager takes async, ringmaster, dc, inverse or delay_ada"):
        simulate(lambda world: build(f"eager policy={policy}", world, Vectors((2,))), 2)
