"""Problems whose optimum is known, so that the distance to it can be told: f, its gradient as a rank sees it, f*.

All are arithmetic on one vector x (d,) of float64. A rank's gradient may be stochastic, drawn with the rank's own
generator, so a simulation is reproducible from its seed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hpcasync.errors import UsageError

Vector = NDArray[np.float64]

SAMPLES, FEATURES = 2000, 20  # of the generated data set
RIDGE = 1e-2  # l2 regularisation of the regressions: strongly convex, so there is one optimum
LENGTH = 50  # d of the quadratics


class Problem(ABC):
    """A function to minimise.

    Attributes:
        start: (d,) where x begins.
        smoothness: L, the Lipschitz constant of f's gradient; gradient descent is stable iff its step is below 2/L.
        optimum: f*, the least value of f.
    """

    start: Vector
    smoothness: float
    optimum: float

    @abstractmethod
    def value(self, x: Vector) -> float:
        """f(x)."""

    @abstractmethod
    def gradient(self, x: Vector, rank: int, rng: np.random.Generator) -> Vector:
        """(d,) what ``rank`` knows of f's gradient at x."""

    def gap(self, x: Vector) -> float:
        """(f(x) - f*) / (f(x0) - f*): 1 at the start, 0 at the optimum."""
        return (self.value(x) - self.optimum) / (self.value(self.start) - self.optimum)


class Tridiagonal(Problem):
    """f(x) = x'Ax/2 - b'x with A = tridiag(-1, 2, -1)/4, b = -e_1/4 and x0 = sqrt(d) e_1; the same on every rank.

    The worst function for first-order methods (Nesterov, "Introductory Lectures on Convex Optimization", 2004, sec.
    2.1.2), as in the papers on asynchronous SGD: Tyurin and Richtárik, "Optimal Time Complexities of Parallel
    Stochastic Optimization Methods Under a Fixed Computation Model", NeurIPS 2023 (https://arxiv.org/abs/2305.12387),
    and Maranjyan, Tyurin and Richtárik, "Ringmaster ASGD", 2025 (https://arxiv.org/abs/2501.16168).
    L = cos²(pi/(2(d+1))), x*_k = k/(d+1) - 1.

    Args:
        noise: standard deviation of the normal noise in every element of a gradient (0.01 in the latter paper).
    """

    def __init__(self, length: int = LENGTH, noise: float = 0.0) -> None:
        self.noise = noise
        self.start = np.zeros(length)
        self.start[0] = math.sqrt(length)
        self.smoothness = math.cos(math.pi / (2 * (length + 1))) ** 2
        self.optimum = self.value(np.arange(1, length + 1) / (length + 1) - 1)

    def value(self, x: Vector) -> float:
        return float(x @ self._times_matrix(x) / 2 + x[0] / 4)

    def gradient(self, x: Vector, rank: int, rng: np.random.Generator) -> Vector:
        gradient = self._times_matrix(x)
        gradient[0] += 0.25
        if self.noise:
            gradient += rng.normal(0.0, self.noise, len(x))
        return gradient

    def _times_matrix(self, x: Vector) -> Vector:
        product = x / 2
        product[1:] -= x[:-1] / 4
        product[:-1] -= x[1:] / 4
        return product


class Heterogeneous(Problem):
    """f = (1/n) Σ_r f_r with f_r(x) = (x - c_r)' D_r (x - c_r)/2 on rank r: every rank has a minimum of its own.

    D_r is diagonal with elements uniform in [0.1, 1], c_r normal; x0 = 0. A method that hears fast ranks more often
    than slow ones comes to rest at the minimum of another function.

    Args:
        noise: standard deviation of the normal noise in every element of a gradient.
    """

    def __init__(self, ranks: int, length: int = LENGTH, noise: float = 0.0, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.noise = noise
        self._scales = rng.uniform(0.1, 1.0, (ranks, length))
        self._centers = rng.normal(0.0, 1.0, (ranks, length))
        self._scale = self._scales.mean(axis=0)
        self._slope = (self._scales * self._centers).mean(axis=0)
        self._constant = float((self._scales * self._centers**2).sum() / (2 * ranks))
        self.start = np.zeros(length)
        self.smoothness = float(self._scale.max())
        self.optimum = self.value(self._slope / self._scale)

    def value(self, x: Vector) -> float:
        return float(self._scale @ (x * x) / 2 - self._slope @ x + self._constant)

    def gradient(self, x: Vector, rank: int, rng: np.random.Generator) -> Vector:
        gradient: Vector = self._scales[rank] * (x - self._centers[rank])
        if self.noise:
            gradient += rng.normal(0.0, self.noise, len(x))
        return gradient


class Regression(Problem):
    """f(x) = (1/m) Σ_i loss(a_i'x, y_i) + ridge ‖x‖²/2 from x0 = 0; a gradient is that of ``batch`` random samples.

    Args:
        features: (m, d) the a_i.
        targets: (m,) the y_i; -1 and 1 for logistic regression, log(1 + exp(-y a'x)); else squares, (a'x - y)²/2.
        batch: samples per gradient, drawn with replacement, the same population on every rank; 0 takes all m.
    """

    def __init__(self, features: Vector, targets: Vector, batch: int, logistic: bool, ridge: float = RIDGE) -> None:
        self._features, self._targets, self._batch, self._ridge = features, targets, batch, ridge
        self._losses, self._slopes, curvature = _LOGISTIC if logistic else _SQUARES
        self.start = np.zeros(features.shape[1])
        gram = features.T @ features / len(features)
        self.smoothness = curvature * float(np.linalg.eigvalsh(gram)[-1]) + ridge
        self.optimum = self.value(self._minimum())

    def value(self, x: Vector) -> float:
        losses = self._losses(self._features @ x, self._targets)
        return float(losses.mean() + self._ridge * (x @ x) / 2)

    def gradient(self, x: Vector, rank: int, rng: np.random.Generator) -> Vector:
        features, targets = self._features, self._targets
        if self._batch:
            chosen = rng.integers(len(features), size=self._batch)
            features, targets = features[chosen], targets[chosen]
        slopes: Vector = self._slopes(features @ x, targets)
        gradient: Vector = slopes @ features / len(features) + self._ridge * x
        return gradient

    def _minimum(self) -> Vector:
        """By gradient descent with Nesterov's momentum for strongly convex functions, until nothing changes."""
        root = math.sqrt(self._ridge / self.smoothness)
        x = previous = self.start
        for _ in range(100_000):
            ahead = x + (1 - root) / (1 + root) * (x - previous)
            slopes = self._slopes(self._features @ ahead, self._targets)
            gradient = slopes @ self._features / len(self._features) + self._ridge * ahead
            previous, x = x, ahead - gradient / self.smoothness
            if np.linalg.norm(gradient) < 1e-12 * (1 + np.linalg.norm(x)):
                break
        return x


_Rule = tuple[Callable[[Vector, Vector], Vector], Callable[[Vector, Vector], Vector], float]

# The loss of a prediction p for a target y, its derivative by p, and the bound of its second derivative.
_LOGISTIC: _Rule = (lambda p, y: np.logaddexp(0.0, -y * p), lambda p, y: y * (np.tanh(y * p / 2) - 1) / 2, 0.25)
_SQUARES: _Rule = (lambda p, y: (p - y) ** 2 / 2, lambda p, y: p - y, 1.0)


def logistic(batch: int, seed: int = 0) -> Regression:
    """Logistic regression on generated data: normal features of unequal scale, labels drawn from the model itself."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(SAMPLES, FEATURES)) * np.geomspace(1.0, 0.1, FEATURES)
    weights = rng.normal(0.0, 3.0, FEATURES)
    targets = np.where(rng.random(SAMPLES) < 1 / (1 + np.exp(-features @ weights)), 1.0, -1.0)
    return Regression(features, targets, batch, logistic=True)


def regression(table: Vector, batch: int) -> Regression:
    """Of the last column of ``table`` (m, k + 1) on the others, standardised, and on a constant.

    Logistic if the last column has two different values; least squares on its standardised values otherwise.

    Raises:
        UsageError: the last column has one value only.
    """
    columns, targets = table[:, :-1], table[:, -1]
    kinds = np.unique(targets)
    if len(kinds) < 2:
        raise UsageError(f"the last column is {kinds[0]:g} in every line: there is nothing to learn")
    features = np.column_stack([_standardised(columns), np.ones(len(table))])
    if len(kinds) == 2:
        return Regression(features, np.where(targets == kinds[1], 1.0, -1.0), batch, logistic=True)
    return Regression(features, _standardised(targets), batch, logistic=False)


def _standardised(values: Vector) -> Vector:
    """Each column with mean 0 and standard deviation 1; one that never varies becomes 0."""
    spread = values.std(axis=0)
    result: Vector = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return result
