"""Synchronous rounds whose result is another than the mean: robust against faulty ranks, or adaptive."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hpcasync.aggregation import Rule, inner_products, parse_rule, weighted_sum
from hpcasync.reduction import StagedReduction
from hpcasync.replica import Pair, Replica
from hpcasync.strategies.sync import Sync
from hpcasync.world import Stages, World


class Robust(Sync):
    """Synchronous SGD with a rule in place of the mean.

        x_{t+1} = x_t - gamma · rule(g_1(x_t), ..., g_n(x_t))

    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018 (median, trimmed
    mean, https://arxiv.org/abs/1803.01498); Blanchard et al. 2017 (Krum); Maleki et al. 2021 (Adasum,
    https://arxiv.org/abs/2006.02924); see ``hpcasync.aggregation``. What may be faulty are gradients, by broken
    hardware or bad data; a rank that breaks the protocol itself stops all of them.

    Every rank applies the rule to one piece of all ranks' gradients, so it sends as much as in an allreduce:

    1. a rank sends every piece of its gradient to the piece's owner (all-to-all);
    2. for a rule of inner products, the owners add up those of their pieces: one (n, n) matrix, or one per tensor;
    3. an owner applies the rule, and sends the result to all (allgather): all ranks get the same bits.

    When some ranks have made their last step, the rule goes on with the others, and tolerates as many faulty ones as it
    can among them. Adasum's result is as long as a sum where gradients are orthogonal, so its learning rate is that of
    a rank alone.

    Args:
        rule: mean, median, trimmed:F, krum:F, multikrum:F or adasum; F is how many ranks may be faulty.

    Raises:
        UsageError: an unknown rule, or one that needs more ranks.
    """

    compresses = ()

    def __init__(self, replica: Replica, world: World, optimizer: torch.optim.Optimizer, rule: str = "median") -> None:
        parsed = parse_rule(rule, world.size)
        super().__init__(replica, world, optimizer)
        if world.size > 1:
            self.reduction = RuleReduction(parsed, replica.pairs, world)


class RuleReduction(StagedReduction):
    """Applies ``rule`` to the messages of all ranks that contribute; the result counts as one contribution."""

    def __init__(self, rule: Rule, pairs: Sequence[Pair], world: World) -> None:
        self._rule, self._pieces = rule, [_Piece(pair, rule, world) for pair in pairs]

    def stages(self, world: World, messages: Sequence[Tensor]) -> Stages:
        """See :class:`Robust` for the stages; the second is there for rules of inner products."""
        sent = [piece.spread(message, messages[0][-1]) for piece, message in zip(self._pieces, messages, strict=True)]
        received = [torch.empty_like(rows) for rows in sent]
        yield [world.ialltoall(*buffers) for buffers in zip(sent, received, strict=True)]
        present = [rows[rows[:, -1] > 0, :-1] for rows in received]
        products = [piece.products(rows) for piece, rows in zip(self._pieces, present, strict=True)]
        if self._rule.weigh is not None:
            yield [world.iallreduce(each) for each in products]
            if not self._rule.by_tensor:  # the inner products of whole gradients, which all dtypes are part of
                products = [torch.stack(products).sum(dim=0)] * len(products)
        results = [piece.combine(*each) for piece, *each in zip(self._pieces, present, products, strict=True)]
        gathered = [result.new_empty(world.size * len(result)) for result in results]
        yield [world.iallgather(*buffers) for buffers in zip(results, gathered, strict=True)]
        for vector, message in zip(gathered, messages, strict=True):
            message[:-1] = vector[: len(message) - 1]
            message[-1] = min(len(present[0]), 1)


class _Piece:
    """The piece of one dtype's gradient that this rank applies the rule to; all pieces have the same length."""

    def __init__(self, pair: Pair, rule: Rule, world: World) -> None:
        self._rule, self._size = rule, world.size
        self._length = -(-pair.memory.numel() // world.size)
        start = world.rank * self._length
        spans = [(span.start, span.stop) for span in pair.spans] if rule.by_tensor else [(0, pair.memory.numel())]
        ends = [(max(a - start, 0), min(b - start, self._length)) for a, b in spans]
        self._columns = [(a, max(a, b)) for a, b in ends]  # of each tensor in my piece, empty where it has none

    def spread(self, message: Tensor, count: Tensor) -> Tensor:
        """(size, length + 1): a row for each piece of ``message``, with the count behind it."""
        rows = message.new_zeros(self._size, self._length + 1)
        for row, part in zip(rows, torch.split(message[:-1], self._length), strict=False):
            row[: len(part)] = part
        rows[:, -1] = count
        return rows

    def products(self, rows: Tensor) -> Tensor:
        """(tensors, n, n) float64: the inner products of my columns of (n, length) ``rows``, if the rule needs them."""
        if self._rule.weigh is None:
            return torch.empty(0)
        return torch.stack([inner_products(rows[:, a:b]) for a, b in self._columns])

    def combine(self, rows: Tensor, products: Tensor) -> Tensor:
        """(length,) the rule's result; zeros if there are no rows."""
        rule, f = self._rule, self._rule.tolerated(len(rows))
        result = rows.new_zeros(self._length)
        if len(rows) and rule.combine is not None:
            result.copy_(rule.combine(rows, f))
        elif len(rows):
            assert rule.weigh is not None
            for (a, b), weights in zip(self._columns, (rule.weigh(each, f) for each in products), strict=True):
                result[a:b] = weighted_sum(rows[:, a:b], weights)
        return result
