"""Partial allreduce: a step hands in its gradient and goes on; whoever is ready is in the next mean."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpcasync.compression import CODECS, Compression
from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.staleness import Ledger, Memory, Policy, Stamp, parse_policy
from hpcasync.staleness.policies import DelayAdaptive, DelayCompensation, InverseStaleness, Ringmaster
from hpcasync.strategies.strategy import Strategy
from hpcasync.world import Quorum, Round, World

_TAKEN = (Policy, Ringmaster, DelayCompensation, InverseStaleness, DelayAdaptive)


class Eager(Strategy):
    """Eager-SGD that never waits for a slow rank, as long as that rank misses at most ``bound`` rounds in a row.

        x_{R+1} = x_R - gamma · (Σ_r G_r) / (Σ_r c_r)

    where G_r is the sum of the c_r gradients that rank r has computed and that no earlier round took; c_r may be 0. All
    ranks apply the same rounds in the same order, each when it comes to the end of a step, so replicas cannot drift. A
    gradient is used exactly once, and at most bound + 1 rounds are applied between the one it was computed after and
    its own. ``bound=0`` is synchronous SGD.

    Li et al., "Taming Unbalanced Training Workloads in Deep Learning with Partial Collective Operations", PPoPP 2020
    (https://arxiv.org/abs/1908.04207). There a rank that is ready waits for the round to start; here it computes on,
    up to ``bound`` steps ahead of what rounds have taken. Staleness that is bounded by waiting for the rank that is
    behind stands in for the allreduce of everyone every tau steps of Li et al., "Breaking (Global) Barriers in Parallel
    Stochastic Optimization with Wait-Avoiding Group Averaging", 2020 (WAGMA-SGD, https://arxiv.org/abs/2005.00124).

    A ``policy`` looks at a gradient when it is handed in, at the rounds that have come while it was computed; it may be
    corrected, scaled or dropped, but its rank still counts in c_r unless it is dropped. Who waits for whom is said by
    the quorum (1: solo, n - B: backup workers) and the bound (0: BSP, more: SSP), so policies that say it are refused.

    Args:
        quorum: who starts a round: "solo", the first rank that is ready; "majority", a rank drawn at random, so that
            half of the ranks or more are ready on average; a number, that many ranks.
        bound: rounds in a row that may go on without a rank; steps that a rank may have ahead of the rounds.
        policy: async, ringmaster, dc, inverse or delay_adaptive; see ``hpcasync.staleness``.

    Raises:
        UsageError: a quorum that is none of these or larger than the world, a negative bound, or another policy.
    """

    replicated = True
    rereads = True
    compresses = CODECS

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        quorum: str = "majority",
        bound: int = 8,
        policy: str = "async",
    ) -> None:
        parsed, self.policy = Quorum.parse(quorum), parse_policy(policy, world.size)
        if type(self.policy) not in _TAKEN:
            raise UsageError(f"policy={policy}: eager takes async, ringmaster, dc, inverse or delay_adaptive")
        super().__init__(replica, world, optimizer)
        self._rounds = world.partial([pair.message for pair in replica.pairs], parsed, bound)
        for pair, message in zip(replica.pairs, self._rounds.unused(), strict=True):
            pair.use_messages([message.zero_()])
        self.bound = bound if world.size > 1 else 0  # a rank alone has nobody to run ahead of
        self._applied = 0
        self._read: deque[int] = deque()  # rounds applied before each of my pending gradients was computed
        self._then = [pair.params.detach().clone() for pair in replica.pairs] if self.policy.compares else []
        self._version = 0  # rounds applied before the gradient that is being computed
        world.barrier()

    def compress(self, compression: Compression) -> None:
        super().compress(compression)
        self._rounds.reduce_by(self.reduction.stages)
        self.world.barrier()  # nobody joins a round before it knows how

    def _step(self) -> None:
        if not self.contributes:
            pass  # the rounds go on without it
        elif type(self.policy) is Policy or self._judge():
            self.replica.pairs[0].message[-1] = 1
            self._read.append(self._version)
            self.replica.recycle(self._rounds.contribute(self.replica.renew_grads()))
        else:
            self.dropped += 1
            self.replica.zero_grads()
        if not self._near():
            self.world.wait_until(self._near)
        self._apply_arrived()
        self._note_read()

    def drain(self) -> None:
        if not self._adopted:
            self._adopt_parameters()
        self._rounds.leave()
        while not self._rounds.over:
            self.world.wait_until(self._stirs)
            self._apply_arrived()
        self._note_shown()

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        return super().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._settle()
        super().load_state_dict(state)
        self._note_read()

    def _changed(self, number: int, change: Tensor) -> None:
        if self.world.size > 1:
            super()._changed(number, change)

    def _settle(self) -> None:
        """Collective. Have every gradient applied; then the parameters and the optimizer are all there is to keep."""
        self.drain()
        self._rounds.rejoin()
        self._note_read()

    def _judge(self) -> bool:
        """Have the policy's will with the gradient, once what has come meanwhile is applied. False: drop it."""
        self._apply_arrived()
        ranks = self.world.size
        nothing = torch.zeros(ranks, dtype=torch.int64)
        stamp = Stamp(self.world.rank, self._version)
        ledger = Ledger(self._applied, nothing + 1, nothing, torch.zeros(ranks, dtype=torch.float64))
        if not self.policy.admit(stamp, ledger):
            return False
        weight, memory = self.policy.weight(stamp, ledger), Memory(torch.empty(0))
        for number, pair in enumerate(self.replica.pairs):
            then = self._then[number] if self._then else pair.params
            pair.grads.copy_(self.policy.correct(pair.grads, pair.params, then, memory).mul_(weight))
        return True

    def _note_read(self) -> None:
        """The next gradient is computed at the parameters of now."""
        self._version = self._applied
        for then, pair in zip(self._then, self.replica.pairs, strict=False):
            then.copy_(pair.params)

    def _near(self) -> bool:
        return self._rounds.pending <= self.bound

    def _stirs(self) -> bool:
        return self._rounds.has_arrived or self._rounds.over

    def _apply_arrived(self) -> None:
        while (arrived := self._rounds.arrived()) is not None:
            self._apply(arrived)

    def _apply(self, arrived: Round) -> None:
        messages = arrived.messages
        messages[0][-1] = arrived.counts.sum()  # counted in integers: a half type holds few of them exactly
        self.replica.apply_mean(self.optimizer, messages)
        for _ in range(int(arrived.counts[self.world.rank])):
            self.staleness.record(self._applied - self._read.popleft())
        self._applied += 1
