"""The policies of the field, each by its paper."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcasync.errors import UsageError
from hpcasync.staleness.policy import Ledger, Memory, Policy, Stamp


@dataclass(frozen=True)
class Bounded(Policy):
    """SSP: the slowest rank is at most ``steps`` steps behind one that starts a step; 0 is BSP, bulk synchronous.

    Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server", NeurIPS 2013.
    """

    steps: float

    def __post_init__(self) -> None:
        _require(self.steps >= 0, self.steps, "a number of steps from 0 on")

    @property
    def bound(self) -> float:
        return self.steps


@dataclass(frozen=True)
class Ringmaster(Policy):
    """x <- x - gamma g if delay < threshold, else g is dropped.

    Maranjyan, Tyurin and Richtárik, "Ringmaster ASGD: The First Asynchronous SGD with Optimal Time Complexity", ICML
    2025, alg. 4 (https://arxiv.org/abs/2501.16168), with R = ceil(sigma^2 / epsilon) in theory: sigma^2 is the variance
    of a gradient, epsilon the squared norm of f's gradient to be reached. So R does not depend on the number of ranks
    n, which is the default: with little noise a small R, such as 2, bears a larger step size and is faster, the more so
    the more ranks there are. Algorithm 5 also stops computations whose delay has reached R: see ``Server.renew``.
    ``threshold`` inf is plain asynchronous SGD.
    """

    threshold: float

    def __post_init__(self) -> None:
        _require(self.threshold >= 1, self.threshold, "a delay from 1 on")

    def admit(self, stamp: Stamp, ledger: Ledger) -> bool:
        return ledger.delay(stamp) < self.threshold


@dataclass(frozen=True)
class Rennala(Policy):
    """x <- x - gamma (1/S) Σ of the first S = ``batch`` gradients computed at x, whoever's; later ones are dropped.

    Tyurin and Richtárik, "Optimal Time Complexities of Parallel Stochastic Optimization Methods Under a Fixed
    Computation Model", NeurIPS 2023, alg. 1 and 2 (https://arxiv.org/abs/2305.12387). One thing is added: a rank whose
    gradient is in an unfinished batch waits up to 5 % of its step's duration for it to be full. So n equal ranks with
    S = n are synchronous SGD; else all but the last of them would begin a gradient that comes to be dropped.
    """

    batch: int

    collects = True
    patience = 0.05

    def __post_init__(self) -> None:
        _require(self.batch >= 1, self.batch, "a number of gradients from 1 on")

    def gate(self, stamp: Stamp, version: int) -> bool:
        return version > stamp.version

    def admit(self, stamp: Stamp, ledger: Ledger) -> bool:
        return ledger.delay(stamp) == 0

    def complete(self, ledger: Ledger) -> bool:
        return int(ledger.counts.sum()) >= self.batch


@dataclass(frozen=True)
class Malenia(Rennala):
    """x <- x - gamma (1/n) Σ_r (1/B_r) Σ_{j ≤ B_r} g_rj(x), as soon as ((1/n) Σ_r 1/B_r)^-1 >= S/n.

    For heterogeneous data: every rank counts the same however many of its B_r >= 1 gradients are in the update. Tyurin
    and Richtárik 2023 (see :class:`Rennala`), alg. 3.
    """

    by_rank = True

    def complete(self, ledger: Ledger) -> bool:
        made = ledger.counts[ledger.counts > 0]
        if not len(made) or bool((ledger.counts[ledger.active > 0] == 0).any()):
            return False
        return len(made) / float((1 / made).sum()) >= self.batch / len(made)


@dataclass(frozen=True)
class Quorum(Policy):
    """x <- x - gamma mean of the gradients of the first ``ranks`` ranks; each computes one per update, and waits.

    Chen et al., "Revisiting Distributed Synchronous SGD", 2016, alg. 3 and 4 (https://arxiv.org/abs/1604.00981):
    synchronous SGD with n - ``ranks`` backup workers, also called m-sync. With a grace window, the rank that completes
    the quorum waits ``grace`` seconds for the late ones, whose gradients are then in the mean too. What comes after
    the update is dropped. Ranks that have left are not waited for.
    """

    ranks: int
    grace: float = 0.0

    collects = True

    def __post_init__(self) -> None:
        _require(self.ranks >= 1, self.ranks, "a number of ranks from 1 on")
        _require(0 <= self.grace < math.inf, self.grace, "a grace window in seconds")

    @property
    def grace_seconds(self) -> float:
        return self.grace

    def gate(self, stamp: Stamp, version: int) -> bool:
        return version > stamp.version

    def admit(self, stamp: Stamp, ledger: Ledger) -> bool:
        return ledger.delay(stamp) == 0

    def complete(self, ledger: Ledger) -> bool:
        return int(ledger.counts.sum()) >= max(1, min(self.ranks, int(ledger.active.sum())))


@dataclass(frozen=True)
class Lipschitz(Policy):
    """Kardam's filter: g is used if ‖g - g'‖ / ‖x - x'‖ is at most the (n - faulty)/n quantile of all ranks' last ones.

    Damaskinos et al., "Asynchronous Byzantine Machine Learning (the case of SGD)", ICML 2018, sec. 3.1
    (https://arxiv.org/abs/1802.07928). g' and x' are those of the rank's contribution before. Here every rank computes
    its own quotient, so this guards against bad data, memory and hardware, not against a rank that lies.
    """

    faulty: int

    watches_growth = True

    def __post_init__(self) -> None:
        _require(self.faulty >= 0, self.faulty, "a number of faulty ranks from 0 on")

    def admit(self, stamp: Stamp, ledger: Ledger) -> bool:
        growths = ledger.growths.clone()
        growths[stamp.rank] = stamp.growth
        known = growths[growths > 0].sort().values
        if not stamp.growth > 0 or len(known) <= self.faulty:
            return math.isfinite(stamp.growth)
        return stamp.growth <= float(known[len(known) - 1 - self.faulty])


@dataclass(frozen=True)
class DelayCompensation(Policy):
    """DC-ASGD: x_now <- x_now - gamma (g + strength g ⊙ g ⊙ (x_now - x_then)).

    Zheng et al., "Asynchronous Stochastic Gradient Descent with Delay Compensation", ICML 2017, eq. 10
    (https://arxiv.org/abs/1609.08326): g ⊙ g stands for the diagonal of the Hessian, as the Fisher information of a
    likelihood does. That holds in expectation, and for the gradient of one sample: E g ⊙ g of a mean over B samples is
    B times smaller (but for the squared mean). So ``strength`` should be B where the loss is a negative log-likelihood.
    The default, the paper's 0.04, corrects 0.04 / B of what staleness changes: with batches of 32 a thousandth of it.
    """

    strength: float

    compares = True

    def __post_init__(self) -> None:
        _require(self.strength >= 0, self.strength, "a strength from 0 on")

    def correct(self, g: Tensor, now: Tensor, then: Tensor, memory: Memory) -> Tensor:
        return torch.addcmul(g, g * g, now - then, value=self.strength)


@dataclass(frozen=True)
class AdaptiveCompensation(DelayCompensation):
    """DC-ASGD-a: ``strength`` over the root of the running mean of g ⊙ g, element by element.

    Zheng et al. 2017, eq. 14 (see :class:`DelayCompensation`). The correction is then linear in the size of g, and
    ``strength`` grows with the root of the batch size only. Every rank has a running mean of its own gradients.
    """

    decay = 0.95

    def correct(self, g: Tensor, now: Tensor, then: Tensor, memory: Memory) -> Tensor:
        return torch.addcmul(g, g * g, (now - then) / (memory.square + 1e-7).sqrt(), value=self.strength)


@dataclass(frozen=True)
class GapAware(Policy):
    """x <- x - gamma g / (1 + |x_now - x_then| / C), element by element; C is the size of a usual update.

    Barkai, Hakimi and Schuster, "Gap Aware Mitigation of Gradient Staleness", ICLR 2020
    (https://arxiv.org/abs/1909.10802). C is the running mean over this rank's updates of an element's root mean square.
    """

    compares = True

    def correct(self, g: Tensor, now: Tensor, then: Tensor, memory: Memory) -> Tensor:
        return g / (1 + (now - then).abs() / memory.stride) if memory.stride else g


@dataclass(frozen=True)
class InverseStaleness(Policy):
    """x <- x - (gamma / max(1, delay)) g.

    Zhang et al., "Staleness-aware Async-SGD for Distributed Deep Learning", IJCAI 2016, eq. 6
    (https://arxiv.org/abs/1511.05950).
    """

    def weight(self, stamp: Stamp, ledger: Ledger) -> float:
        return 1 / max(1, ledger.delay(stamp))


@dataclass(frozen=True)
class DelayAdaptive(Policy):
    """x <- x - gamma min(1, concurrency / delay) g: only what is older than usual counts less.

    Koloskova, Stich and Jaggi, "Sharper Convergence Guarantees for Asynchronous SGD for Distributed and Federated
    Learning", NeurIPS 2022, thm. 8 (https://arxiv.org/abs/2206.08307); Mishchenko et al., "Asynchronous SGD Beats
    Minibatch SGD Under Arbitrary Delays", NeurIPS 2022 (https://arxiv.org/abs/2206.07638).
    """

    concurrency: int

    def __post_init__(self) -> None:
        _require(self.concurrency >= 1, self.concurrency, "a delay from 1 on")

    def weight(self, stamp: Stamp, ledger: Ledger) -> float:
        return min(1.0, self.concurrency / max(1, ledger.delay(stamp)))


def _require(holds: bool, value: float, what: str) -> None:
    if not holds:
        raise UsageError(f"{value!r} is not {what}")
