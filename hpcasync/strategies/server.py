"""A parameter server without a server process: the rank that brings a contribution makes the update itself."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpcasync.clock import Clock
from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.staleness import Ledger, Stamp, parse_policy
from hpcasync.strategies.board import Board, ShardVersions
from hpcasync.strategies.owner import SharedState, make_optimizer
from hpcasync.strategies.server_part import Part, growth
from hpcasync.strategies.sharded import shards
from hpcasync.strategies.strategy import Strategy
from hpcasync.world import World


class Server(Strategy):
    """Asynchronous SGD around central parameters x, with a policy about staleness and an optimizer of the shards.

        rank r, every ``push`` steps:   G <- Σ of its gradients since the last push, read at version t - delay
        if the policy admits G:         x <- optimizer(x, weight · correct(G, x_t, x_{t - delay}))
        every ``pull`` steps:           x_r <- x

    Dean et al., "Large Scale Distributed Deep Networks", NeurIPS 2012, sec. 4.1, with the policies of
    ``hpcasync.staleness``. Policies that collect make one update out of the mean of several contributions.

    The parameters, the state of the owners' optimizer and what is collected lie in the ranks' windows, a shard each.
    The rank that brings a contribution is attended to as by a server: it takes a token, decides, adds to the shards and
    gives the token back (see ``board.py``). So a slow owner holds nobody up, and its shard is as fresh as the others;
    but a rank that is stopped while it has the token stops all updates until it goes on. If it dies, all are told.
    Every shard counts its updates; ``skew`` is the largest difference that this rank has met while updates were under
    way, and a warning is given (RuntimeWarning, once) when shards differ and none is.

    With ``owner=given`` the job's optimizer makes the updates. Its momentum is each rank's own where every contribution
    is an update, and one for all where a policy collects: heavy-ball momentum shared by n asynchronous ranks would add
    to the momentum 1 - 1/n that asynchrony itself causes (Mitliagkas et al. 2016), and is to be had by name only.

    Args:
        policy: what becomes of stale contributions, see ``hpcasync.staleness``.
        owner: the optimizer whose one state lies with the shards: sgd, nesterov (momentum 0.9), adagrad or adam, with
            the job's learning rate; or given, see above.
        push: steps whose gradients are added up to a contribution.
        pull: steps between two pulls.
        warmup: steps that rank 0 makes alone at the start, while the others wait; they drop their first gradient.
    """

    rereads = True

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        policy: str = "async",
        owner: str = "given",
        push: int = 1,
        pull: int = 1,
        warmup: int = 0,
    ) -> None:
        for name, period in (("push", push), ("pull", pull)):
            if period < 1:
                raise UsageError(f"{name}={period}: it is a period in steps, so 1 or more")
        if warmup < 0:
            raise UsageError(f"warmup={warmup}: it counts steps, so 0 or more")
        self.policy = self._parse(policy, world.size)
        self._owner = make_optimizer(owner, optimizer)
        super().__init__(replica, world, optimizer)
        self.push, self.pull, self.warmup = push, pull, warmup
        self.clock = Clock(world, self.policy.bound)
        self._board = Board(world)
        self._parts = [Part(pair, world, self.policy) for pair in replica.pairs]
        owners = max(len(shards(pair.params.numel(), world.size)) for pair in replica.pairs)
        self._versions, self.skew = ShardVersions(world, owners), 0
        central = self._owner is not optimizer or self.policy.collects
        self._state = SharedState(world, self._owner) if central else None
        self._read = self._pushed_since_read = self._unpushed = 0
        self._began, self._alarmed = world.now(), False
        world.barrier()

    _parse = staticmethod(parse_policy)

    def _changed(self, number: int, change: Tensor) -> None:
        self._parts[number].carry(change)

    def _step(self) -> None:
        if self.contributes:
            self._unpushed += 1
        else:  # the buffers that hold it hold the gradients that wait for it to be pushed, too
            self._drop()
        lasted_seconds = self.world.now() - self._began
        if self.clock.steps == 0 and self.warmup and self.world.rank > 0:
            self._let_rank_0_begin()
        elif (self.clock.steps + 1) % self.push == 0 and self._unpushed:
            self._await_update(self._contribute(), lasted_seconds)
        self.clock.advance()
        self.clock.gate()
        if self.clock.steps % self.pull == 0:
            self._pull()
        self._began = self.world.now()

    def drain(self) -> None:
        if self._unpushed:
            self._contribute()
        self.clock.leave()
        self._leave()
        self.world.barrier()
        if self.world.rank == 0:
            self._apply(self._board.read())  # what is left of an update that nobody will complete
        self.world.barrier()
        self._pull()

    def renew(self) -> bool:
        """True if what this rank is computing would be dropped; its replica then has the parameters of now.

        For a job with long steps, to ask before backward() or between its micro-batches, and to begin the step anew:
        the computations that Ringmaster ASGD's algorithm 5 stops. A step never does so by itself: MPI cannot interrupt
        a rank that computes.
        """
        nothing = torch.zeros(self.world.size, dtype=torch.int64)
        ledger = Ledger(self._board.version(), nothing, nothing, nothing.double())
        if self.policy.admit(Stamp(self.world.rank, self._version()), ledger):
            return False
        self._drop()
        self._pull()
        self._note_shown()
        return True

    def parameters(self) -> list[Tensor]:
        return [part.now().clone() for part in self._parts]

    def state_dict(self) -> dict[str, Any]:
        self._leave()  # nobody shall wait for an update that has to come from a rank that is here
        self.world.barrier()
        state = {
            "tensors": [tensor.clone() for tensor in self._tensors()],
            "strides": [part.memory.stride for part in self._parts],
            "steps": self.clock.steps,
            "numbers": [self._read, self._pushed_since_read, self._unpushed, self.dropped],
            **super().state_dict(),
        }
        self._come_back()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for tensor, saved in zip(self._tensors(), state["tensors"], strict=True):
            tensor.copy_(saved)
        for part, stride in zip(self._parts, state["strides"], strict=True):
            part.memory.stride = float(stride)
        self.clock.restore(int(state["steps"]))
        self._read, self._pushed_since_read, self._unpushed, self.dropped = map(int, state["numbers"])
        super().load_state_dict(state)
        self._come_back()

    def _tensors(self) -> list[Tensor]:
        """This rank's share of all there is to keep for a checkpoint."""
        owners = self._state.sharded if self._state else []
        parts = [tensor for part in self._parts for tensor in part.tensors()]
        return [*parts, *(sharded.shard for sharded in owners), *self._board.tensors(), self._versions.mine]

    def _version(self) -> int:
        """Of the parameters that this rank has; its own updates are in them."""
        return self._read + self._pushed_since_read

    def _contribute(self) -> Stamp:
        """Bring what lies in the gradient buffers."""
        watches = self.policy.watches_growth
        stamp = Stamp(self.world.rank, self._version(), growth(self._parts) if watches else 0.0)
        closes = False
        with self._board.attention():
            ledger = self._board.read(growths=watches)
            if watches:
                self._board.set_growth(stamp.growth)
            if self.policy.admit(stamp, ledger):
                self._unpushed = 0
                self.staleness.record(ledger.delay(stamp))
                for part in self._parts:
                    part.mend(self.policy.weight(stamp, ledger))
                closes = self._use(ledger)
        self._drop()
        if closes:
            self._close(stamp.version)
        return stamp

    def _use(self, ledger: Ledger) -> bool:
        """Make an update, or have it collected. True if this rank is to close the update after the grace window."""
        if not self.policy.collects:
            self._update()
            return False
        complete = self.policy.complete(ledger)
        for part in self._parts:
            assert part.table is not None
            part.table.add(part.pair.grads, int(ledger.counts[self.world.rank]))
        self._board.count()
        ledger.counts[self.world.rank] += 1
        if complete or not self.policy.complete(ledger):
            return False
        if not self.policy.grace_seconds:
            self._apply(ledger)
        return self.policy.grace_seconds > 0

    def _close(self, version: int) -> None:
        """Make the collected update when all ranks are in it or the grace window is over, if no other rank has."""
        end = self.world.now() + self.policy.grace_seconds
        self.world.wait_until(lambda: self._board.all_in() or self.world.now() >= end)
        with self._board.attention():
            ledger = self._board.read()
            if ledger.version == version:
                self._apply(ledger)

    def _apply(self, ledger: Ledger) -> None:
        """An update with the mean of what has been collected, if anything has. Gradient buffers stay as they are."""
        if not self.policy.collects or not ledger.counts.any():
            return
        count = int((ledger.counts > 0).sum() if self.policy.by_rank else ledger.counts.sum())
        for part in self._parts:
            part.take_mean(count)
        self._board.add_counts(-ledger.counts)
        self._update()
        for part in self._parts:
            part.see_own()

    def _update(self) -> None:
        """One step of the owners' optimizer, added to the shards."""
        if self._owner is not self.optimizer:
            for group in self._owner.param_groups:
                group["lr"] = self.optimizer.param_groups[0]["lr"]
        if self._state:
            self._state.load()
        for part in self._parts:
            part.begin_update()
        self._owner.step()
        for part in self._parts:
            part.push_update()
        if self._state:
            self._state.store()
        for part in self._parts:
            part.center.window.flush()
        self._versions.count()
        self._board.updated()
        self._pushed_since_read += 1

    def _await_update(self, stamp: Stamp, lasted_seconds: float) -> None:
        """Wait as long as the policy wants for the update that my contribution is part of."""
        if not self.policy.collects or self.policy.gate(stamp, self._board.version()):
            return
        if self.policy.patience == math.inf:
            self.world.wait_until(lambda: self.policy.gate(stamp, self._board.version()))
            return
        end = self.world.now() + self.policy.patience * lasted_seconds
        self.world.wait_until(lambda: self.policy.gate(stamp, self._board.version()) or self.world.now() >= end)

    def _drop(self) -> None:
        """Forget the gradients that are in no contribution."""
        self.dropped += self._unpushed
        self._unpushed = 0
        self.replica.zero_grads()

    def _pull(self) -> None:
        self._watch_skew()
        self._read, self._pushed_since_read = self._board.version(), 0
        for part in self._parts:
            part.pair.params.copy_(part.now())  # by way of a copy: a death during the pull leaves the parameters whole

    def _watch_skew(self) -> None:
        """See how far the shards' versions are apart.

        Updates may be under way while they are read: if in doubt, read them with the token, when they must be equal.
        """
        skew = self._versions.skew()
        self.skew = max(self.skew, skew)
        if skew <= self.world.size or self._alarmed:
            return
        with self._board.attention():
            apart = self._versions.skew()
        if apart:
            self._alarmed = True
            warnings.warn(f"server: {apart} updates have not arrived at every shard", RuntimeWarning, stacklevel=2)

    def _let_rank_0_begin(self) -> None:
        """Warm start: drop the first gradient, wait until rank 0 has come far enough, and go on as its equal."""
        self._drop()
        self.clock.restore(self.warmup - 1)  # this step is the last of them
        self._leave()  # rank 0 shall not wait for me
        self.clock.wait_for(0, self.warmup)
        with self._board.attention():
            self._board.set_active(True)

    def _leave(self) -> None:
        """This rank contributes no more; what has been waiting for nobody but it becomes an update."""
        with self._board.attention():
            self._board.set_active(False)
            ledger = self._board.read()
            if self.policy.complete(ledger):
                self._apply(ledger)

    def _come_back(self) -> None:
        """Collective, after :meth:`_leave`."""
        self._note_shown()
        with self._board.attention():
            self._board.set_active(True)
        self.world.barrier()
