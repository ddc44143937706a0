"""Rules that make one vector of the ranks' vectors, as pure functions on a matrix with one row per rank.

A rule either looks at every coordinate by itself (mean, median, trimmed mean), or its result is a weighted sum of the
rows whose weights depend on nothing but their inner products (Krum, Adasum). Either way ranks that hold different
columns of the matrix can compute their columns of the result, once they have added up their inner products.

Up to f rows may be anything, NaN and infinity included: a rule that tolerates f of them is called robust.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hpcasync.errors import UsageError

Columns = Sequence[tuple[int, int]]


def mean(rows: Tensor) -> Tensor:
    """(n, d) -> (d,): the arithmetic mean. One faulty row suffices to make it anything."""
    return rows.mean(dim=0)


def median(rows: Tensor) -> Tensor:
    """(n, d) -> (d,): the median of every coordinate, of an even number of rows the mean of the middle two.

    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, def. 1
    (https://arxiv.org/abs/1803.01498). NaN counts as larger than everything.
    """
    ordered, n = rows.sort(dim=0).values, len(rows)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def trimmed_mean(rows: Tensor, f: int) -> Tensor:
    """(n, d) -> (d,): the mean of every coordinate without its f smallest and f largest values, n > 2 f.

    Yin et al. 2018, def. 2, with f = beta n. NaN counts as larger than everything.
    """
    n = len(rows)
    _need(n, 2 * f + 1, f"trimmed:{f}")
    return rows.sort(dim=0).values[f : n - f].mean(dim=0)


def krum(rows: Tensor, f: int) -> Tensor:
    """(n, d) -> (d,): the row with the smallest sum of squared distances to its n - f - 2 nearest others, n >= 2 f + 3.

    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017, sec. 4.
    """
    return weighted_sum(rows, krum_weights(inner_products(rows), f))


def multi_krum(rows: Tensor, f: int) -> Tensor:
    """(n, d) -> (d,): the mean of the n - f rows with the best scores of :func:`krum` (Blanchard et al. 2017)."""
    return weighted_sum(rows, multi_krum_weights(inner_products(rows), f))


def adasum(rows: Tensor, tensors: Columns | None = None) -> Tensor:
    """(n, d) -> (d,): between the sum, of rows that are orthogonal, and the mean, of rows that are equal.

        a + b   ->   (1 - a·b / (2 a·a)) a + (1 - a·b / (2 b·b)) b

    Maleki et al., "Scaling Distributed Training with Adaptive Summation", MLSys 2021, eq. 4
    (https://arxiv.org/abs/2006.02924), over a tree whose halves are neighbours. With 2^k rows that is the paper's tree;
    with any other number the left half is the one with a row more. All products are float64.

    Args:
        tensors: columns [start, stop) of each tensor; the rule is applied tensor by tensor. One tensor unless given.
    """
    result = rows.new_empty(rows.shape[1])
    for start, stop in tensors or [(0, rows.shape[1])]:
        part = rows[:, start:stop]
        result[start:stop] = weighted_sum(part, adasum_weights(inner_products(part)))
    return result


def inner_products(rows: Tensor) -> Tensor:
    """(n, d) -> (n, n) float64. Those of some columns and those of the others add up to those of all."""
    wide = rows.double()
    return wide @ wide.T


def weighted_sum(rows: Tensor, weights: Tensor) -> Tensor:
    """(n, d), (n,) -> (d,). A row of weight 0 is not looked at: 0 times NaN would be NaN."""
    used = weights.nonzero().view(-1)
    return (weights[used] @ rows[used].double()).to(rows.dtype)


def krum_weights(products: Tensor, f: int) -> Tensor:
    """(n, n) inner products -> (n,): 1 for the row that :func:`krum` chooses."""
    return _of_the_best(_krum_scores(products, f), 1)


def multi_krum_weights(products: Tensor, f: int) -> Tensor:
    """(n, n) inner products -> (n,): 1 / (n - f) for each row that :func:`multi_krum` chooses."""
    return _of_the_best(_krum_scores(products, f), len(products) - f)


def adasum_weights(products: Tensor) -> Tensor:
    """(n, n) inner products -> (n,) float64: how much of each row is in the result of :func:`adasum`."""
    n = len(products)
    if n == 1:
        return products.new_ones(1)
    half = (n + 1) // 2
    left, right = products.new_zeros(n), products.new_zeros(n)
    left[:half] = adasum_weights(products[:half, :half])
    right[half:] = adasum_weights(products[half:, half:])
    dot = left @ products @ right
    left *= _coefficient(dot, left @ products @ left)
    right *= _coefficient(dot, right @ products @ right)
    return left + right


def _coefficient(dot: Tensor, square: Tensor) -> Tensor:
    return 1 - dot / (2 * square) if square else torch.ones_like(dot)


def _krum_scores(products: Tensor, f: int) -> Tensor:
    n = len(products)
    _need(n, 2 * f + 3 if f else 1, f"krum:{f}")
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).nan_to_num(nan=math.inf, posinf=math.inf)
    distances.fill_diagonal_(math.inf)  # a row is none of its own neighbours
    return distances.sort(dim=1).values[:, : max(n - f - 2, 0)].sum(dim=1)


def _of_the_best(scores: Tensor, count: int) -> Tensor:
    weights = torch.zeros_like(scores)
    weights[scores.argsort(stable=True)[:count]] = 1 / count
    return weights


def _need(n: int, least: int, rule: str) -> None:
    if n < least:
        raise UsageError(f"rule={rule}: it needs {least} ranks or more, and there are {n}")


@dataclass(frozen=True)
class Rule:
    """A rule to apply to rows that lie on different ranks. Either ``combine`` or ``weigh`` is there.

    Attributes:
        f: how many faulty rows it tolerates.
        combine: ((n, d) rows, f) -> (d,), coordinate by coordinate.
        weigh: ((n, n) inner products, f) -> (n,) weights of the rows.
        least: f -> how many rows it needs.
        by_tensor: ``weigh`` has the inner products of one tensor at a time.
    """

    f: int = 0
    combine: Callable[[Tensor, int], Tensor] | None = None
    weigh: Callable[[Tensor, int], Tensor] | None = None
    least: Callable[[int], int] | None = None
    by_tensor: bool = False

    def tolerated(self, n: int) -> int:
        """f, or as much of it as the rule can stand among only ``n`` rows."""
        return next((f for f in range(self.f, 0, -1) if self.least is None or self.least(f) <= n), 0)


RULES: dict[str, Rule] = {
    "mean": Rule(combine=lambda rows, _: mean(rows)),
    "median": Rule(combine=lambda rows, _: median(rows)),
    "trimmed": Rule(1, combine=trimmed_mean, least=lambda f: 2 * f + 1),
    "krum": Rule(1, weigh=krum_weights, least=lambda f: 2 * f + 3),
    "multikrum": Rule(1, weigh=multi_krum_weights, least=lambda f: 2 * f + 3),
    "adasum": Rule(weigh=lambda products, _: adasum_weights(products), by_tensor=True),
}


def parse_rule(text: str, ranks: int) -> Rule:
    """The rule called ``text`` for rows of so many ranks: a name, or "name:F" where F is how many may be faulty.

    Raises:
        UsageError: an unknown rule (the message lists the known ones), an F that is no number or too many.
    """
    name, colon, number = text.partition(":")
    if name not in RULES:
        known = ", ".join(f"{name}:F" if rule.least else name for name, rule in RULES.items())
        raise UsageError(f"rule={text}: the known rules are {known}; F is how many ranks may be faulty")
    rule = RULES[name]
    if colon:
        if rule.least is None:
            raise UsageError(f"rule={text}: {name} takes no number")
        if not (number.isascii() and number.isdigit()):
            raise UsageError(f"rule={text}: {number!r} is no number of faulty ranks; write for example {name}:1")
        rule = replace(rule, f=int(number))
    if rule.least is not None and rule.f:
        _need(ranks, rule.least(rule.f), f"{name}:{rule.f}")
    return rule
