"""PowerSGD: matrices as products of two thin ones, which, unlike other payloads, can be added up on their way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hpcasync.reduction import Layout, StagedReduction, together
from hpcasync.world import Stages, World


class _Matrix:
    """A parameter of two or more dimensions, as a matrix (n, m) that lies at [start, stop) of the flat vector."""

    def __init__(self, start: int, shape: Sequence[int], rank: int, dtype: torch.dtype) -> None:
        self.n, self.m = shape[0], math.prod(shape[1:])
        self.start, self.stop = start, start + self.n * self.m
        self.rank = min(rank, self.n, self.m)
        generator = torch.Generator().manual_seed(start)  # the same start on every rank
        self.right = torch.randn(self.m, self.rank, generator=generator, dtype=dtype)  # kept: a warm start

    @property
    def shrinks(self) -> bool:
        return self.rank * (self.n + self.m) < self.n * self.m

    def of(self, vector: Tensor) -> Tensor:
        return vector[self.start : self.stop].view(self.n, self.m)


class _Factors:
    """One dtype's vector (n,): its matrices, its other elements, and the residual of what this rank has sent."""

    def __init__(self, layout: Layout, rank: int) -> None:
        dtype = torch.promote_types(layout.dtype, torch.float32)
        shaped = [_Matrix(span.start, span.shape, rank, dtype) for span in layout.spans if len(span.shape) > 1]
        self.matrices = [matrix for matrix in shaped if matrix.shrinks]
        self.residual = torch.zeros(layout.length, dtype=dtype)
        others = torch.ones(layout.length, dtype=torch.bool)
        for matrix in self.matrices:
            others[matrix.start : matrix.stop] = False
        self._others = others.nonzero().view(-1)

    def stages(self, world: World, message: Tensor, contributed: bool) -> Stages:
        """Reduce ``message`` (n + 1,). A rank without a contribution sends nothing, of the residual neither."""
        vector = torch.zeros_like(self.residual)
        if contributed:
            vector.add_(message[:-1]).add_(self.residual)
            self.residual.zero_()  # others may begin before this one knows what it leaves out
        left = self.left(vector, message[-1])
        mine = left.clone()
        yield [world.iallreduce(left)]
        bases = self.bases(left)
        right = self.right(vector, bases)
        if contributed:
            self.residual.add_(vector).sub_(self.decode(bases, mine, right))
        yield [world.iallreduce(right)]
        message[:-1] = self.decode(bases, left, right)
        message[-1] = left[-1]
        if right.any():
            self.warm(right)

    def left(self, vector: Tensor, count: Tensor) -> Tensor:
        """What is summed first: P = M Q of every matrix, the other elements, the count."""
        products = [(matrix.of(vector) @ matrix.right).view(-1) for matrix in self.matrices]
        return torch.cat([*products, vector[self._others], count.to(vector.dtype).view(1)])

    def bases(self, left: Tensor) -> list[Tensor]:
        """An orthonormal basis of the columns of every summed P."""
        parts = torch.split(left, [*(m.n * m.rank for m in self.matrices), len(self._others) + 1])
        return [torch.linalg.qr(part.view(m.n, m.rank)).Q for m, part in zip(self.matrices, parts, strict=False)]

    def right(self, vector: Tensor, bases: Sequence[Tensor]) -> Tensor:
        """What is summed next: Q = M^T P of every matrix."""
        products = [matrix.of(vector).T @ base for matrix, base in zip(self.matrices, bases, strict=True)]
        return torch.cat([*(product.view(-1) for product in products), vector.new_empty(0)])

    def decode(self, bases: Sequence[Tensor], left: Tensor, right: Tensor) -> Tensor:
        """(n,) P Q^T of every matrix, and the other elements as they are in ``left``."""
        vector = torch.empty_like(self.residual)
        vector[self._others] = left[len(left) - 1 - len(self._others) : -1]
        for matrix, base, factor in zip(self.matrices, bases, self._rights(right), strict=True):
            torch.mm(base, factor.T, out=matrix.of(vector))
        return vector

    def warm(self, right: Tensor) -> None:
        """Begin the next time with these Q."""
        for matrix, factor in zip(self.matrices, self._rights(right), strict=True):
            matrix.right = factor

    def _rights(self, right: Tensor) -> list[Tensor]:
        parts = torch.split(right, [m.m * m.rank for m in self.matrices]) if self.matrices else ()
        return [part.view(m.m, m.rank) for m, part in zip(self.matrices, parts, strict=True)]


class PowerSGD(StagedReduction):
    """The sum of the ranks' gradients, each matrix (n, m) of which is approximated by one of the given rank r.

        P = Σ_i M_i Q,   P <- orthonormal columns of P,   Q <- Σ_i M_i^T P,   result = P Q^T

    Vogels et al., "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization", NeurIPS 2019,
    alg. 1 and 2 (https://arxiv.org/abs/1905.13727): one step of subspace iteration that begins with the Q of the last
    time, under error feedback: a rank remembers M_i - P Q_i^T. A sum of matrices whose rank is r or less is exact. The
    two allreduces are of r (n + m) elements per matrix; vectors, such as biases, and matrices that would not shrink are
    summed as they are. A convolution's weight is a matrix with a row per output channel.
    """

    def __init__(self, layouts: Sequence[Layout], rank: int) -> None:
        self._factors = [_Factors(layout, rank) for layout in layouts]

    def stages(self, world: World, messages: Sequence[Tensor]) -> Stages:
        contributed = bool(messages[0][-1])
        both = zip(self._factors, messages, strict=True)
        return together(factors.stages(world, message, contributed) for factors, message in both)

    def state_dict(self) -> dict[str, Any]:
        return {
            "residuals": [f.residual.clone() for f in self._factors],
            "rights": [[matrix.right.clone() for matrix in f.matrices] for f in self._factors],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for f, residual, rights in zip(self._factors, state["residuals"], state["rights"], strict=True):
            f.residual.copy_(residual)
            for matrix, right in zip(f.matrices, rights, strict=True):
                matrix.right = right.clone()
