"""Policies as pure functions: what each decides, in closed forms."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.errors import UsageError
from hpcasync.staleness import Ledger, Memory, Policy, Stamp, parse_policy

NO_MEMORY = Memory(torch.zeros(0))


def ledger(version: int = 0, counts: list[int] | None = None, growths: list[float] | None = None, left: int = 0):
    """Of as many ranks as there are ``counts`` or ``growths``; the last ``left`` of them have left."""
    n = len(counts or growths or [0, 0, 0, 0])
    active = torch.tensor([1] * (n - left) + [0] * left)
    return Ledger(
        version, active, torch.tensor(counts or [0] * n), torch.tensor(growths or [0.0] * n, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("policy", "admitted"),
    [
        ("async", 99),
        ("ringmaster:1", 0),
        ("ringmaster:8", 7),
        ("ringmaster", 3),
        ("ringmaster:inf", 99),
        ("rennala", 0),
        ("malenia:7", 0),
        ("backup", 0),
        ("quorum:2:0.5", 0),
        ("dc", 99),
        ("gap", 99),
        ("ssp:3", 99),
    ],
)
def test_the_largest_delay_that_is_admitted(policy, admitted):
    admits = [parse_policy(policy, 4).admit(Stamp(0, 5), ledger(5 + delay)) for delay in range(100)]
    assert admits == [delay <= admitted for delay in range(100)]


@pytest.mark.parametrize(
    ("policy", "weights"),
    [
        ("async", [1] * 6),
        ("inverse", [1, 1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]),
        ("delay_adaptive", [1, 1, 1, 1, 1, 4 / 5]),
        ("delay_adaptive:2", [1, 1, 1, 2 / 3, 1 / 2, 2 / 5]),
    ],
)
def test_the_weight_of_a_delay(policy, weights):
    assert [parse_policy(policy, 4).weight(Stamp(0, 0), ledger(delay)) for delay in range(6)] == pytest.approx(weights)


@pytest.mark.parametrize(
    ("policy", "counts", "left", "complete"),
    [
        ("async", [0, 0, 0, 0], 0, False),
        ("rennala", [3, 0, 0, 0], 0, False),
        ("rennala", [4, 0, 0, 0], 0, True),
        ("rennala:2", [0, 1, 1, 0], 0, True),
        ("backup", [1, 1, 0, 0], 0, False),
        ("backup", [1, 1, 0, 1], 0, True),
        ("backup", [1, 1, 0, 0], 2, True),  # those that have left are not waited for
        ("backup:0", [1, 1, 1, 0], 0, False),
        ("backup:9", [0, 1, 0, 0], 0, True),
        ("backup", [0, 0, 0, 0], 4, False),
        ("quorum:4", [1, 1, 1, 1], 0, True),
        ("malenia", [9, 9, 9, 0], 0, False),  # every rank must be in it
        ("malenia", [1, 1, 1, 1], 0, True),  # (mean of 1/B)^-1 = 1 >= 4/4
        ("malenia:8", [1, 2, 2, 2], 0, False),  # 1 / ((1 + 1.5) / 4) = 1.6 < 8/4
        ("malenia:8", [1, 3, 3, 3], 0, True),  # 1 / ((1 + 1) / 4) = 2
        ("malenia", [2, 1, 1, 0], 1, False),  # of three ranks: 1.2 < 4/3
        ("malenia", [2, 2, 1, 0], 1, True),  # 1.5
    ],
)
def test_when_an_update_is_complete(policy, counts, left, complete):
    assert parse_policy(policy, 4).complete(ledger(counts=counts, left=left)) is complete


def test_what_collects_waits_for_its_update_and_the_rest_for_nothing():
    waits = {name: not parse_policy(name, 4).gate(Stamp(0, 3), 3) for name in ("async", "rennala", "backup", "dc")}
    assert waits == {"async": False, "rennala": True, "backup": True, "dc": False}
    assert parse_policy("backup", 4).gate(Stamp(0, 3), 4)
    assert parse_policy("backup", 4).patience == math.inf
    assert parse_policy("rennala", 4).patience < 1
    assert parse_policy("bsp", 4).bound == 0
    assert parse_policy("ssp:3", 4).bound == 3
    assert parse_policy("quorum:2:0.5", 4).grace_seconds == 0.5


def test_delay_compensation_is_the_taylor_term():
    """For f = Σ a_i x_i^2 / 2 with a_i x_i^2 = 1 at x_then the square of the gradient is the Hessian: exact repair."""
    then = torch.tensor([0.5, 1.0, -2.0], dtype=torch.float64)
    a = 1 / then.square()
    now = then + torch.tensor([0.1, -0.3, 0.7], dtype=torch.float64)
    assert torch.allclose(parse_policy("dc:1", 4).correct(a * then, now, then, NO_MEMORY), a * now)
    g = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    corrected = parse_policy("dc:0.04", 4).correct(g, now, then, NO_MEMORY)
    assert torch.allclose(corrected, g + 0.04 * g * g * (now - then), rtol=1e-12)


@pytest.mark.parametrize(("strength", "left"), [(0.04, 1 - 0.04 / 32), (16, 0.5), (32, 0.0)])
def test_delay_compensation_takes_the_batch_size_as_its_strength(strength, left):
    """What is left of the error of stale gradients, in the mean over many batches of 32, is 1 - strength / 32.

    Logistic regression on one feature, at the true x: the label of sample i is 1 with probability p_i = sigmoid(a_i x),
    so that the mean square of one sample's gradient (p_i - y_i) a_i is the Hessian, the mean of a_i² p_i (1 - p_i).
    """
    rng, batches, size, moved = np.random.default_rng(0), 100_000, 32, 1e-3
    a = torch.from_numpy(rng.normal(size=(batches, size)))
    p = torch.sigmoid(a)
    y = (torch.from_numpy(rng.random((batches, size))) < p).double()
    stale = ((p - y) * a).mean(dim=1)  # a gradient per batch, as if each were an element
    then = torch.ones(batches, dtype=torch.float64)
    corrected = parse_policy(f"dc:{strength}", 4).correct(stale, then + moved, then, NO_MEMORY)
    error = float((a * a * p * (1 - p)).mean()) * moved  # of the stale gradient, by Taylor
    assert 1 - float((corrected - stale).mean()) / error == pytest.approx(left, abs=0.02 if strength > 1 else 1e-4)


def test_adaptive_compensation_is_linear_in_the_gradient():
    g, then = torch.tensor([3.0, -1.0]), torch.zeros(2)
    now = torch.tensor([0.5, 2.0])
    once = parse_policy("dc_adaptive:2", 4).correct(g, now, then, Memory(g * g))
    thrice = parse_policy("dc_adaptive:2", 4).correct(3 * g, now, then, Memory(9 * g * g))
    assert torch.allclose(once, g + 2 * g.abs() * now, rtol=1e-5)
    assert torch.allclose(thrice, 3 * once, rtol=1e-5)


def test_a_gap_of_one_usual_update_halves_the_gradient():
    g, then = torch.tensor([4.0, 4.0, 4.0]), torch.zeros(3)
    now = torch.tensor([0.0, 0.1, -0.3])
    gap = parse_policy("gap", 4)
    assert gap.correct(g, now, then, Memory(g, stride=0.1)).tolist() == pytest.approx([4, 2, 1])
    assert torch.equal(gap.correct(g, now, then, Memory(g)), g)  # no update has been seen yet


def test_the_lipschitz_filter_drops_what_grows_more_than_the_others():
    policy, others = parse_policy("lipschitz", 4), ledger(growths=[1.0, 2.0, 3.0, 0.0])  # one may be faulty
    assert policy.admit(Stamp(3, 0, growth=2.9), others)
    assert policy.admit(Stamp(3, 0, growth=0.0), others)  # nothing is known yet
    assert not policy.admit(Stamp(3, 0, growth=1e3), others)
    assert not policy.admit(Stamp(3, 0, growth=math.inf), others)
    assert not policy.admit(Stamp(3, 0, growth=math.nan), others)
    assert parse_policy("lipschitz:0", 4).admit(Stamp(3, 0, growth=1e3), ledger(growths=[1.0, 1e3, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope", "policy=nope: unknown; known: async, bsp, ssp:STEPS, "),
        ("ssp", "policy=ssp: write ssp:STEPS"),
        ("async:1", "policy=async:1: write async"),
        ("ringmaster:x", "policy=ringmaster:x: 'x' is not a number"),
        ("ringmaster:0", "policy=ringmaster:0: 0.0 is not a delay from 1 on"),
        ("ringmaster:nan", "policy=ringmaster:nan: nan is not a delay"),
        ("rennala:1.5", "policy=rennala:1.5: '1.5' is not a whole number"),
        ("rennala:0", "policy=rennala:0: 0 is not a number of gradients from 1 on"),
        ("backup:-1", "policy=backup:-1: -1 is not a number of ranks from 0 on"),
        ("quorum:0", "policy=quorum:0: 0 is not a number of ranks from 1 on"),
        ("quorum:2:-1", "policy=quorum:2:-1: -1.0 is not a grace window in seconds"),
        ("quorum:2:inf", "policy=quorum:2:inf: inf is not a grace window in seconds"),
        ("dc:-1", "policy=dc:-1: -1.0 is not a strength from 0 on"),
        ("lipschitz:-1", "policy=lipschitz:-1: -1 is not a number of faulty ranks from 0 on"),
        ("delay_adaptive:0", "policy=delay_adaptive:0: 0 is not a delay from 1 on"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(text, message):
    with pytest.raises(UsageError) as error:
        parse_policy(text, 4)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@given(st.text(max_size=20), st.integers(1, 9))
def test_any_text_is_a_policy_or_a_usage_error(text, ranks):
    try:
        assert dataclasses.is_dataclass(parse_policy(text, ranks))
    except UsageError as error:
        assert str(error)


@given(st.integers(0, 50), st.integers(0, 50))
def test_policies_are_pure(version, delay):
    for text in ("async", "ringmaster:8", "inverse", "delay_adaptive", "rennala"):
        policy, state = parse_policy(text, 4), ledger(version + delay)
        answers = [(policy.admit(Stamp(1, version), state), policy.weight(Stamp(1, version), state)) for _ in range(2)]
        assert answers[0] == answers[1]
        assert policy == parse_policy(text, 4)
        assert isinstance(policy, Policy)
