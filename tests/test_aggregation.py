"""Rules on rows of a matrix, with expected values from their papers; and as strategies, on rows of different ranks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcasync.aggregation import RULES, adasum, krum, mean, median, multi_krum, parse_rule, trimmed_mean
from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.sim import SimWorld, simulate
from hpcasync.strategies.robust import RuleReduction
from hpcasync.world import World
from tests.training import Vectors, build, train

A = torch.tensor([1.0, 2.0, 3.0])


def test_adasum_of_orthogonal_rows_is_their_sum():
    assert adasum(torch.diag(A)).tolist() == A.tolist()


def test_adasum_of_parallel_rows_is_their_mean():
    assert adasum(torch.stack([A, 3 * A])).tolist() == (2 * A).tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_adasum_of_equal_rows_is_one_of_them(n):
    assert torch.allclose(adasum(A.repeat(n, 1)), A)


def test_adasum_of_a_zero_row_is_the_other():
    assert adasum(torch.stack([A, 0 * A])).tolist() == A.tolist()


def test_adasum_goes_tensor_by_tensor():
    rows = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]])
    assert adasum(rows, [(0, 2), (2, 3)]).tolist() == [1.0, 1.0, 2.0]


def test_adasum_of_two_by_its_equation():
    a, b = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (1 - a @ b / (2 * a @ a)) * a + (1 - a @ b / (2 * b @ b)) * b
    assert torch.allclose(adasum(torch.stack([a, b])), expected, rtol=1e-12)


def honest_and_colluding() -> tuple[torch.Tensor, torch.Tensor]:
    """(10,) the truth and (8, 10): six ranks that measure it with noise 0.1, and two that agree on a lie."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(10, generator=generator)
    rows = truth + 0.1 * torch.randn(8, 10, generator=generator)
    rows[[2, 5]] = 1e3 * torch.ones(10)
    return truth, rows


ROBUST = {
    "median": median,
    "trimmed": lambda rows: trimmed_mean(rows, 2),
    "krum": lambda rows: krum(rows, 2),
    "multikrum": lambda rows: multi_krum(rows, 2),
}


@pytest.mark.parametrize("name", ROBUST)
def test_robust_rules_stand_two_colluding_ranks_of_eight(name):
    truth, rows = honest_and_colluding()
    assert (ROBUST[name](rows) - truth).norm() < 0.5
    assert (mean(rows) - truth).norm() > 400


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ROBUST)
def test_robust_rules_stand_what_is_no_number(name, poison):
    truth, rows = honest_and_colluding()
    rows[[2, 5]] = poison
    assert (ROBUST[name](rows) - truth).norm() < 0.5


def test_median_and_trimmed_mean_by_hand():
    rows = torch.tensor([[1.0, 9.0], [2.0, 7.0], [4.0, 8.0], [100.0, -100.0]])
    assert median(rows).tolist() == [3.0, 7.5]
    assert median(rows[:3]).tolist() == [2.0, 8.0]
    assert trimmed_mean(rows, 1).tolist() == [3.0, 7.5]
    assert trimmed_mean(rows, 0).tolist() == mean(rows).tolist()


def test_krum_by_hand():
    rows = torch.tensor([[0.0], [1.0], [2.5], [3.0], [100.0]])
    # with f = 1 a row has 2 neighbours: 1 + 6.25, 1 + 2.25, 0.25 + 2.25, 0.25 + 4, ...
    assert krum(rows, 1).tolist() == [2.5]
    assert multi_krum(rows, 1).tolist() == [(0 + 1 + 2.5 + 3) / 4]


@settings(max_examples=50)
@given(st.integers(1, 9), st.integers(0, 999), st.sampled_from(list(RULES)))
def test_a_rule_does_not_depend_on_how_the_columns_lie_on_the_ranks(n, seed, name):
    """Inner products of some columns and of the others add up; whatever combines columns does so one by one."""
    rule, rows = RULES[name], torch.randn(n, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if rule.combine is not None:
        f = rule.tolerated(n)
        parts = [rule.combine(rows[:, :3], f), rule.combine(rows[:, 3:], f)]
        assert torch.equal(torch.cat(parts), rule.combine(rows, f))


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        (
            "nope",
            8,
            "rule=nope: the known rules are mean, median, trimmed:F, krum:F, multikrum:F, adasum; F is",
        ),
        ("trimmed:x", 8, "rule=trimmed:x: 'x' is no number of faulty ranks; write for example trimmed:1"),
        ("median:1", 8, "rule=median:1: median takes no number"),
        ("trimmed:2", 4, "rule=trimmed:2: it needs 5 ranks or more, and there are 4"),
        ("krum:1", 4, "rule=krum:1: it needs 5 ranks or more, and there are 4"),
        ("krum", 4, "rule=krum:1: it needs 5 ranks or more, and there are 4"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(text, size, message):
    with pytest.raises(UsageError) as error:
        parse_rule(text, size)
    assert str(error.value).startswith(message)


def test_rows_too_few_are_refused():
    with pytest.raises(UsageError, match="rule=krum:1: it needs 5 ranks or more, and there are 4"):
        krum(torch.zeros(4, 2), 1)
    with pytest.raises(UsageError, match="rule=trimmed:2: it needs 5 ranks or more, and there are 4"):
        trimmed_mean(torch.zeros(4, 2), 2)


def reduced(rule: str, rows: torch.Tensor, shapes: list[tuple[int, ...]], absent: int | None = None) -> list:
    """What every rank gets of the rule, when rank r has the gradient rows[r] of parameters of these shapes."""

    def main(world: World):
        replica = Replica(Vectors(*shapes))
        message = torch.cat([rows[world.rank], torch.tensor([0.0 if world.rank == absent else 1.0])])
        RuleReduction(parse_rule(rule, world.size), replica.pairs, world).whole(world, [message])
        return message

    return simulate(main, len(rows))


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed:2", "krum:2", "multikrum:2", "adasum"])
def test_ranks_apply_a_rule_to_pieces_as_one_would_to_the_whole(rule):
    _, rows = honest_and_colluding()
    shapes = [(2, 3), (1,), (3,)]
    expected = {**ROBUST, "mean": mean, "adasum": lambda rows: adasum(rows, [(0, 6), (6, 7), (7, 10)])}
    for message in reduced(rule, rows, shapes):
        assert torch.allclose(message[:-1], expected[rule.partition(":")[0]](rows), rtol=1e-6)
        assert message[-1] == 1


def test_a_rule_goes_on_without_the_ranks_that_have_left():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1e6, 1e6]])
    for message in reduced("trimmed:1", rows, [(2,)], absent=2):
        assert message.tolist() == [2.0, 3.0, 1.0]


@pytest.mark.parametrize("words", ["robust rule=trimmed:1", "robust rule=multikrum:1", "robust rule=median"])
def test_training_stands_a_faulty_rank(words):
    def loss(model, rank, step):
        x = model.p0 - torch.tensor([1.0, -2.0, 3.0])
        return 1e3 * model.p0.sum() if rank == 1 else x.square().sum()

    def main(world: World, words: str):
        strategy = build(words, world, model := Vectors((3,)), lr=0.1)
        train(strategy, model, loss, 60)
        strategy.drain()
        return strategy.result()

    for result in simulate(lambda world: main(world, words), 5, compute="exponential"):
        assert torch.allclose(result, torch.tensor([1.0, -2.0, 3.0]), atol=1e-3)
    assert simulate(lambda world: main(world, "sync"), 5)[0].abs().min() > 100


def test_basgd_updates_with_the_rule_of_its_buckets():
    """4 equally fast ranks, 2 buckets: ranks 0 and 2 share one, 1 and 3 the other; an update is the mean of both."""

    def main(world: World):
        strategy = build("basgd buckets=2 rule=mean", world, model := Vectors((64,)))
        train(strategy, model, lambda model, rank, step: model.p0.sum() * [1.0, 2.0, 3.0, 6.0][rank], 6)
        strategy.drain()
        return strategy.result(), strategy._parts[0].updates

    for result, _ in simulate(main, 4):
        assert torch.allclose(result / result[0], torch.ones(64), rtol=0.5)
        assert (result < 0).all()
    assert all(updates > 2 for _, updates in simulate(main, 4))


@pytest.mark.parametrize(("words", "drops"), [("basgd buckets=1 rule=mean", False), ("basgd", True)])
def test_basgd_uses_or_drops_every_gradient(ranks, words, drops):
    """What an owner is given is in a bucket until an update takes it; some ranks make more steps than others."""

    def main(world: World):
        strategy = build(words, world, model := Vectors((16 * world.size,)))
        (part,) = strategy._parts
        put, counts = part._put, torch.zeros(world.size)

        def counting(sender: int, count: int, gradients: torch.Tensor) -> None:
            counts[sender] += count
            put(sender, count, gradients)

        part._put = counting
        train(strategy, model, lambda model, rank, step: model.p0.sum(), 3 + 4 * world.rank)
        strategy.drain()
        assert counts.tolist() == [3 + 4 * rank for rank in range(world.size)]
        assert 0 <= strategy.dropped <= (3 + 4 * world.rank) * drops
        if isinstance(world, SimWorld) and world.rank == world.size - 1 > 0 and drops:
            assert strategy.dropped > 0

    ranks(main)


@pytest.mark.parametrize("words", ["basgd", "basgd buckets=5 rule=trimmed:2", "basgd buckets=3"])
def test_basgd_stands_a_faulty_rank(words):
    target = torch.arange(-20.0, 20.0)

    def loss(model, rank, step):
        return -1e3 * model.p0.sum() if rank == 1 else (model.p0 - target).square().sum()

    def main(world: World):
        strategy = build(words, world, model := Vectors((40,)), lr=0.05)
        train(strategy, model, loss, 150)
        strategy.drain()
        return strategy.result()

    for result in simulate(main, 5, compute="exponential"):
        assert (result - target).abs().max() < 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("basgd buckets=5", "buckets=5: it is at most the number of ranks, 4; 0 is one per rank"),
        ("basgd rule=krum:0", "rule=krum:0: basgd takes mean, median or trimmed:F; no owner has whole gradients"),
        ("basgd rule=trimmed:1 buckets=2", "rule=trimmed:1: it needs 3 ranks or more, and there are 2"),
        ("robust rule=krum", "rule=krum:1: it needs 5 ranks or more, and there are 4"),
    ],
)
def test_strategies_refuse_rules_that_they_cannot_apply(words, message):
    with pytest.raises(UsageError) as error:
        simulate(lambda world: build(words, world, Vectors((4,))), 4)
    assert str(error.value) == message


@pytest.mark.horovod
def test_adasum_equals_horovods():
    """Horovod 0.28.1, float64 products in C++; its tree is for powers of two."""
    hvd = pytest.importorskip("horovod.torch", reason="Horovod is not installed: make horovod", exc_type=ImportError)
    hvd.init()
    rows = torch.randn(hvd.size(), 1000, generator=torch.Generator().manual_seed(0))
    theirs = hvd.allreduce(rows[hvd.rank()].clone(), op=hvd.Adasum, name="adasum")
    assert torch.allclose(adasum(rows), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_adasum_equals_what_horovod_has_computed(n):
    """Recorded from hvd.allreduce(op=hvd.Adasum) of Horovod 0.28.1, on n ranks."""
    rows = torch.tensor([[(7 * r + 3 * i) % 11 - 5.0 for i in range(4)] for r in range(n)])
    recorded = {
        2: [-3.6447367668151855, 4.013157844543457, -2.6578948497772217, 5.0],
        4: [0.45243218541145325, 1.845955729484558, 4.074358940124512, 4.720066070556641],
        8: [3.8257524967193604, 7.5070061683654785, -3.368584632873535, -0.48017439246177673],
    }
    assert torch.allclose(adasum(rows), torch.tensor(recorded[n]), rtol=1e-6, atol=1e-6)
