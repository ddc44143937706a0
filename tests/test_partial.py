"""Partial allreduce: nothing is lost, nobody is waited for but whom the quorum and the bound name, all see the same."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.sim import simulate
from hpcasync.world import Partial, Quorum, RankFailed, World, WorldError

LENGTH = 5
MAJORITY, SOLO = Quorum(initiator=True), Quorum()


def message(rank: int, step: int) -> list[Tensor]:
    """Two messages of different dtypes; their elements are small integers, so that sums are exact."""
    start = 10 * rank + step
    return [torch.arange(start, start + LENGTH).double(), torch.full((3,), float(rank + 1))]


def contribute(world: World, partial: Partial, steps: int, bound: int, first: int = 0) -> list:
    """``steps`` steps as a strategy makes them; the rounds that have arrived: (sums, counts)."""
    rounds: list = []
    for step in range(first, first + steps):
        world.computed(0.0)
        partial.contribute(message(world.rank, step))
        world.wait_until(lambda: partial.pending <= bound)
        rounds += take(partial)
    return rounds


def take(partial: Partial) -> list:
    rounds = []
    while (arrived := partial.arrived()) is not None:
        rounds.append(([m.clone() for m in arrived.messages], arrived.counts.tolist()))
        for lent in arrived.messages:
            lent.fill_(torch.nan)  # mine until I ask again
    return rounds


def test_long_messages_are_added_up_whoever_holds_their_buffers(ranks):
    """Long enough to be reduced where they lie. On odd ranks the rounds pile up, so they run out of the World's buffers
    and reduce memory of their own; the even ranks go on with the World's."""
    steps, length = 8, (1 << 17) + 3

    def main(world: World):
        partial = world.partial([torch.zeros(length)], Quorum.parse(str(world.size)), bound=steps)
        base, rounds = torch.arange(length).remainder(100).float(), []
        messages = partial.unused()
        for step in range(steps):
            messages[0].copy_(base + world.rank + 10 * step)
            messages = partial.contribute(messages)
            world.wait_until(lambda: partial.pending == 0)
            if world.rank % 2 == 0:
                rounds += take(partial)
        rounds += take(partial) + drain(world, partial)
        size = world.size
        for step, ((total,), counts) in enumerate(rounds):
            assert torch.equal(total, size * base + size * (size - 1) / 2 + size * 10 * step)
            assert counts == [1] * size
        assert len(rounds) == steps

    ranks(main)


def drain(world: World, partial: Partial) -> list:
    partial.leave()
    rounds: list = []
    while not partial.over:
        world.wait_until(lambda: partial.has_arrived or partial.over)
        rounds += take(partial)
    assert partial.pending == 0
    assert partial.arrived() is None
    return rounds


def run(steps, size, bound, quorum=MAJORITY, **sim) -> list[list]:
    """Per rank the rounds that it was given; ``steps`` per rank."""

    def main(world: World):
        partial = world.partial(message(0, 0), quorum, bound)
        return contribute(world, partial, steps[world.rank], bound) + drain(world, partial)

    return simulate(main, size, **sim)


def check(rounds_of: list[list], steps, bound) -> None:
    """Every rank has the same rounds, each contribution is in one of them, and nobody has missed too many."""
    first, size = rounds_of[0], len(rounds_of)
    for rounds in rounds_of[1:]:
        assert [counts for _, counts in rounds] == [counts for _, counts in first]
        assert all(
            torch.equal(a, b) for x, y in zip(rounds, first, strict=True) for a, b in zip(x[0], y[0], strict=True)
        )
    for rank in range(size):
        made = [counts[rank] for _, counts in first]
        assert sum(made) == steps[rank]
        assert longest_miss(made) <= bound
    assert all(sum(counts) > 0 for _, counts in first)
    generated = [
        sum(parts) for parts in zip(*(message(r, s) for r in range(size) for s in range(steps[r])), strict=True)
    ]
    for i, total in enumerate(generated):
        assert torch.allclose(sum(sums[i] for sums, _ in first), torch.as_tensor(total), rtol=0, atol=1e-6)


def longest_miss(made: list[int]) -> int:
    """The most rounds in a row without a contribution, before the last contribution."""
    took_part = [-1, *(i for i, count in enumerate(made) if count)]
    return max((b - a - 1 for a, b in itertools.pairwise(took_part)), default=0)


@given(
    steps=st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any),
    bound=st.integers(0, 4),
    quorum=st.sampled_from(["solo", "majority", "2", "3"]),
    compute=st.sampled_from(["exponential", "constant", "sqrt", "slow:0:20", "transient:0.1:50", "pareto:1.5"]),
    alpha=st.sampled_from([0.0, 0.01, 0.7]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100)
def test_nothing_is_lost_however_late_the_ranks_are(steps, bound, quorum, compute, alpha, seed):
    parsed = Quorum.parse(quorum)
    parsed = Quorum(min(parsed.ready, len(steps)), parsed.initiator)
    rounds = run(steps, len(steps), bound, parsed, compute=compute, alpha=alpha, beta=alpha / 1000, seed=seed)
    check(rounds, steps, bound)


def test_every_rank_sees_the_same_rounds_and_every_contribution_once(ranks):
    bound = 3

    def main(world: World):
        steps = [7 + 3 * rank for rank in range(world.size)]
        partial = world.partial(message(0, 0), MAJORITY, bound)
        rounds = contribute(world, partial, steps[world.rank], bound) + drain(world, partial)
        counts = torch.tensor([counts for _, counts in rounds])
        assert counts.sum(0).tolist() == steps
        sums = torch.stack([sums[0] for sums, _ in rounds])
        first = sums.clone()
        world.broadcast(first)
        assert torch.equal(first, sums)
        made = sum(message(r, s)[0] for r in range(world.size) for s in range(steps[r]))
        assert torch.equal(sums.sum(0), made)

    ranks(main, compute="exponential")


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_majority_contributes_on_average(size):
    steps = [400] * size
    rounds = [counts for _, counts in run(steps, size, 1000, compute="exponential")[0]]
    busy = rounds[: len(rounds) // 2]  # while nobody has ended
    fresh = np.mean([np.count_nonzero(counts) for counts in busy])
    assert fresh == pytest.approx((size + 1) / 2, rel=0.1)  # memoryless: each other rank is ready with probability 1/2
    assert fresh >= size / 2


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_round_starts_when_k_ranks_are_ready(k):
    rounds = [counts for _, counts in run([150] * 4, 4, 150, Quorum(k), compute="exponential")[0]]
    fresh = [np.count_nonzero(counts) for counts in rounds[: len(rounds) // 2]]
    assert set(fresh) == {k}


@dataclass(frozen=True)
class Late:
    """Every step takes 1 s; step ``step`` of rank ``rank`` takes ``seconds``."""

    rank: int
    step: int
    seconds: float = 100.0

    def draw(self, rng: np.random.Generator, rank: int, step: int) -> float:
        late = self.seconds if (rank, step) == (self.rank, self.step) else 1.0
        return late + 0.01 * rank


@pytest.mark.parametrize("late_step", [0, 10], ids=["slow to start", "stopped for a while"])
@pytest.mark.parametrize("bound", [1, 5])
def test_the_others_go_on_without_a_late_rank_until_the_bound_and_then_wait(bound, late_step):
    size, late, steps = 4, 2, 200
    ended: dict[int, list[float]] = {rank: [] for rank in range(size)}

    def main(world: World):
        partial = world.partial(message(0, 0), SOLO, bound)
        rounds: list = []
        for step in range(steps):
            rounds += contribute(world, partial, 1, bound, first=step)
            ended[world.rank].append(world.now())
        return rounds + drain(world, partial)

    rounds_of = simulate(main, size, compute=Late(late, late_step))
    check(rounds_of, [steps] * size, bound)
    began, back = late_step * 1.02, late_step * 1.02 + 100.02
    made = [counts[late] for _, counts in rounds_of[0]]
    assert longest_miss(made) == bound
    for rank in set(range(size)) - {late}:
        meanwhile = sum(began < time < back for time in ended[rank])
        # in steps: the rounds that go on without it, then those that nobody takes; and the one under way
        assert bound + bound // size <= meanwhile <= 2 * bound + 2
    assert max(times[-1] for times in ended.values()) < steps * 1.04 + 100 + 2


def test_the_bound_of_0_waits_for_every_rank_in_every_round():
    rounds = [counts for _, counts in run([20] * 3, 3, 0, SOLO, compute="exponential")[0]]
    assert rounds == [[1, 1, 1]] * 20


def test_rounds_that_are_over_begin_anew(ranks):
    def main(world: World):
        partial = world.partial(message(0, 0), MAJORITY, 2)
        for _ in range(3):
            rounds = contribute(world, partial, 4 + world.rank, 2) + drain(world, partial)
            assert np.sum([counts for _, counts in rounds], axis=0).tolist() == [4 + r for r in range(world.size)]
            partial.rejoin()
        rounds = drain(world, partial)
        assert rounds == []

    ranks(main, compute="exponential")


def test_what_a_rank_must_not_do(ranks):
    def main(world: World):
        partial = world.partial(message(0, 0), SOLO, 2)
        with pytest.raises(WorldError, match="rejoins rounds that are not over"):
            partial.rejoin()
        drain(world, partial)
        with pytest.raises(WorldError, match="contributes after it has left"):
            partial.contribute(message(0, 0))
        for quorum, bound, words in (
            (Quorum(world.size + 1), 1, "quorum="),
            (Quorum(0), 1, "quorum=0"),
            (SOLO, -1, "bound=-1"),
        ):
            with pytest.raises(UsageError, match=words):
                world.partial(message(0, 0), quorum, bound)

    ranks(main)


@pytest.mark.parametrize("text", ["", "0", "-1", "half", "1.5", "²"])
def test_a_quorum_that_is_none(text):
    with pytest.raises(UsageError, match="it is solo, majority, or a number of ranks"):
        Quorum.parse(text)


def test_ranks_that_disagree_about_the_rounds_are_told():
    with pytest.raises(WorldError, match=r"calls partial of .* where rank . has called partial of"):
        simulate(lambda world: world.partial([torch.zeros(3 + world.rank)], SOLO, 1), 2)


@pytest.mark.parametrize("when", [*range(1, 30), 0.5, 2.5, 7.0])
@pytest.mark.parametrize("alpha", [0.0, 0.03])
def test_the_survivors_of_a_death_hear_of_it_and_begin_again(when, alpha):
    def main(world: World):
        try:
            partial = world.partial(message(0, 0), MAJORITY, 2)
            contribute(world, partial, 10, 2)
            drain(world, partial)
            world.barrier()
            return "untouched"
        except RankFailed:
            survivors = world.shrink()
        partial = survivors.partial(message(0, 0), MAJORITY, 2)
        rounds = contribute(survivors, partial, 5, 2) + drain(survivors, partial)
        return np.sum([counts for _, counts in rounds], axis=0).tolist()

    results = simulate(main, 3, compute="exponential", alpha=alpha, fail={1: when})
    if results[1] is None:
        assert results == [[5, 5], None, [5, 5]]
    else:
        assert results == ["untouched"] * 3
