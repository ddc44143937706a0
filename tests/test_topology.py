"""Topologies: who is sent to, what mixing matrices they make, and how soon everyone has reached everyone."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcasync import topology
from hpcasync.errors import UsageError
from hpcasync.topology import TOPOLOGIES, Topology, mixing_matrix

sizes = st.integers(1, 40)
steps = st.integers(0, 10**6)
ALL: dict[str, Topology] = TOPOLOGIES | {
    "bipartite": topology.bipartite,
    "groups of 2": partial(topology.group, members=2),
    "groups of 3": partial(topology.group, members=3),
}
DOUBLY_STOCHASTIC = ("ring", "exponential", "one_peer", "groups of 2", "groups of 3")


def after(which: Topology, size: int, rounds: int) -> torch.Tensor:
    """What ``rounds`` rounds of mixing make of the ranks' unit vectors."""
    mixed = torch.eye(size, dtype=torch.float64)
    for step in range(rounds):
        mixed = mixing_matrix(which, size, step) @ mixed
    return mixed


@given(st.sampled_from(sorted(ALL)), sizes, steps)
def test_peers_are_other_ranks_each_once(name, size, step):
    for rank in range(size):
        peers = ALL[name](rank, size, step)
        assert len(set(peers)) == len(peers)
        assert set(peers) <= set(range(size)) - {rank}


@given(st.sampled_from(sorted(ALL)), sizes, steps)
def test_columns_add_up_to_1_and_rows_where_claimed(name, size, step):
    matrix = mixing_matrix(ALL[name], size, step)
    ones = torch.ones(size, dtype=torch.float64)
    assert torch.allclose(matrix.sum(dim=0), ones, atol=1e-14)
    if name in DOUBLY_STOCHASTIC:
        assert torch.allclose(matrix.sum(dim=1), ones, atol=1e-14)
    if name.startswith("groups") or name == "ring":
        assert torch.equal(matrix, matrix.T)


@pytest.mark.parametrize("log2", range(8))
def test_one_peer_averages_exactly_in_log2_n_rounds(log2):
    size = 1 << log2
    assert topology.hops(size) == log2
    assert torch.equal(after(topology.one_peer, size, log2), torch.full((size, size), 1 / size, dtype=torch.float64))


@pytest.mark.parametrize("size", [3, 6, 12])
def test_one_peer_comes_close_for_other_sizes(size):
    shares = after(topology.one_peer, size, 2 * topology.hops(size))
    assert float((shares * size - 1).abs().max()) == pytest.approx(1 / 8)


@pytest.mark.parametrize(("size", "members"), [(1, 2), (2, 2), (8, 2), (9, 3), (16, 4), (27, 3), (64, 8)])
def test_groups_average_exactly_in_one_round_per_digit(size, members):
    rounds = topology.digits(size, members)
    assert rounds == max(1, round(math.log(size, members)))
    mixed = after(partial(topology.group, members=members), size, rounds)
    assert torch.allclose(mixed, torch.full_like(mixed, 1 / size), atol=1e-15)


@given(sizes, st.integers(2, 8))
def test_groups_reach_everyone_in_two_rounds_per_digit(size, members):
    rounds = 2 * topology.digits(size, members)
    assert (after(partial(topology.group, members=members), size, rounds) > 0).all()


@given(st.integers(2, 40), steps)
def test_a_group_is_the_same_for_all_its_members(size, step):
    for rank in range(size):
        together = {rank, *topology.group(rank, size, step, members=3)}
        assert len(together) <= 3
        assert all({peer, *topology.group(peer, size, step, members=3)} == together for peer in together)


def test_odd_ranks_choose_even_ones():
    for size in (2, 3, 7):
        chosen = {peer for step in range(200) for peer in topology.bipartite(1, size, step)}
        assert chosen == set(range(0, size, 2))
        assert topology.bipartite(0, size, 0) == ()


def test_random_reaches_each_of_the_others():
    assert {topology.random(2, 5, step)[0] for step in range(200)} == {0, 1, 3, 4}
    assert topology.random(2, 5, 7) == topology.random(2, 5, 7)


def test_ring_of_2_has_one_neighbour_and_exponential_of_8_has_3():
    assert topology.ring(0, 2, 0) == (1,)
    assert topology.exponential(6, 8, 0) == (7, 0, 2)


def test_an_unknown_topology_is_named():
    with pytest.raises(UsageError, match="topology=star: it is one of ring, exponential, one_peer, random"):
        topology.named("star")
