"""Which strategies add up what the ranks bring, and which average it: the rule of step sizes rests on it."""

from __future__ import annotations

import pytest

from hpcasync.sim import simulate
from hpcasync.strategies import ADDING, STRATEGIES
from tests.training import Vectors, build

RANKS, STEPS, LR = 4, 48, 1e-3
# Adagrad's steps do not depend on the gradients' size; the others update one block of neurons a step.
NOT_ALIKE = {"downpour_adagrad", "neuron_cyclic", "asyscd", "gauss_southwell"}
AVERAGING = (
    "sync",
    "stale",
    "robust",
    "rennala",
    "basgd",
    "ringleader",
    "easgd",
    "sgp",
    "adpsgd",
    "wagma",
    "local_sgd",
)


def way(words: str) -> float:
    """How far rank 0's result has come, in steps of plain SGD: every rank's gradient is 1 everywhere, in every step."""

    def rank(world) -> float:
        model = Vectors((4, 1))
        strategy = build(words, world, model, lr=LR)
        for _ in range(STEPS):
            model.p0.sum().backward()
            world.computed(0.0)
            strategy.step()
        return -float(strategy.result().mean()) / (LR * STEPS)

    return simulate(rank, RANKS, compute="exponential", seed=1)[0]


@pytest.mark.parametrize("name", [name for name in ADDING if name not in NOT_ALIKE])
def test_what_adds_up_goes_up_to_n_times_as_far(name):
    assert RANKS / 2 < way(name) < RANKS * 1.01


@pytest.mark.parametrize("name", AVERAGING)
def test_what_averages_goes_as_far_as_one_rank_alone(name):
    assert 0.2 < way(name) < 1.3


def test_those_that_add_up_are_known_strategies():
    assert set(ADDING) | NOT_ALIKE | set(AVERAGING) <= STRATEGIES.keys()
