"""Hogwild on two levels, on simulated nodes: what one node does reaches the others once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcasync.errors import UsageError
from hpcasync.sim import simulate
from hpcasync.world import World
from tests.training import Vectors, build, gradient, linear, train


@settings(max_examples=30)
@given(
    steps=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    per_node=st.integers(1, 4),
    period=st.integers(1, 5),
    bound=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_every_update_reaches_every_node_once(steps, per_node, period, bound, seed):
    def main(world: World):
        strategy = build(f"hogwild_nodes period={period} bound={bound}", world, model := Vectors((5,), (3,)))
        train(strategy, model, linear, steps[world.rank])
        strategy.drain()
        return strategy.result()

    results = simulate(
        main, len(steps), compute="exponential", seed=seed, ranks_per_node=per_node, alpha=0.1, beta=1e-3
    )
    generated = sum(gradient(r, s, 8) for r, made in enumerate(steps) for s in range(made)) + torch.zeros(8)
    for result in results:
        assert torch.allclose(result, -generated, atol=1e-4)


def test_only_the_first_rank_of_a_node_waits_for_another_node():
    def main(world: World):
        strategy = build("hogwild_nodes period=1 bound=1", world, model := Vectors((4,)))
        before = world.waited
        train(strategy, model, linear, 20)
        waited = world.waited - before
        strategy.drain()
        return waited

    waited = simulate(main, 4, compute="slow:2:8", ranks_per_node=2)  # rank 2 leads the second node
    assert waited[0] > 0
    assert waited[1] == waited[3] == 0


def test_the_outer_level_is_stale_between_nodes_of_one_rank():
    """One rank per node, period 1: an update of another node is applied ``bound`` exchanges after it began."""

    def main(world: World):
        strategy = build("hogwild_nodes period=1 bound=2", world, model := Vectors((1,)))
        seen = []
        for step in range(6):
            train(strategy, model, lambda m, r, s: m.p0.sum() * (10.0**r), 1, first=step)
            seen.append(-float(model.p0.detach()))
        strategy.drain()
        return seen

    own, other = 1.0, 10.0
    expected = [own * (k + 1) + other * max(0, k + 1 - 2) for k in range(6)]
    assert simulate(main, 2, ranks_per_node=1)[0] == expected


@pytest.mark.parametrize("words", ["hogwild_nodes period=0", "hogwild_nodes bound=-1"])
def test_values_out_of_range(words):
    with pytest.raises(UsageError, match=words.split()[1]):
        simulate(lambda world: build(words, world, Vectors((2,))), 1)


def test_a_restored_run_on_two_nodes_goes_on_identically():
    def main(world: World, state=None):
        strategy = build("hogwild_nodes period=2", world, model := Vectors((6,)), lr=0.5)
        first = 0
        if state:
            strategy.load_state_dict(state[world.rank])
            first = 5
        else:
            train(strategy, model, linear, 5)
        saved = strategy.state_dict()
        world.barrier()
        train(strategy, model, linear, 6, first=5)
        strategy.drain()
        return saved, strategy.result(), first

    options = {"compute": "sqrt", "ranks_per_node": 2}
    whole = simulate(main, 4, **options)
    again = simulate(lambda world: main(world, [state for state, *_ in whole]), 4, **options)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(whole, again, strict=True))
