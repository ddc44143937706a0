"""What all strategies share: the ranks agree at the start, result() at any time, state for a checkpoint."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hpcasync.clock import Staleness
from hpcasync.compression import Compression
from hpcasync.errors import RunFailure, UsageError
from hpcasync.reduction import Layout, Reduction
from hpcasync.replica import Flat, Replica
from hpcasync.strategies.finite import FiniteCheck, is_finite
from hpcasync.strategies.shown import Shown
from hpcasync.strategies.spent import Spent
from hpcasync.strays import Strays, ZeroGrad, fit
from hpcasync.world import Window, World


class Strategy(ABC):
    """What happens between ``backward()`` and the next ``forward()``.

    A constructor takes (replica, world, optimizer) and at most five hyperparameters, makes what it needs of the World,
    and leaves all ranks with rank 0's parameters: after a failure, building a strategy again is the recovery.

    Attributes:
        replicated: True where all ranks make the same updates in the same order, each on its own replica.
        sends_in_backward: True where gradients leave inside backward(), by the time :meth:`step` is called.
        rereads: True where a script's changes of the parameters do not take part by themselves, as a step reads these
            anew from elsewhere: :meth:`_changed` carries them there, or refuses.
        ahead: by how many steps ranks can be ahead of each other; None where each goes at its own speed.
        finite_check: keeps gradients that are not finite from leaving this rank.
        contributes: False in a step whose gradient it has dropped: it is zero, and must not be counted.
        dropped: contributions of this rank that were computed and will never be applied.
        compresses: what :meth:`compress` takes, by the names of ``hpcasync.compression``.
        reduction: how one gradient of each rank becomes one of all, in strategies that do this.
    """

    replicated = False
    sends_in_backward = False
    rereads = False
    compresses: tuple[str, ...] = ()
    ahead: int | None = None

    def __init__(self, replica: Replica, world: World, optimizer: torch.optim.Optimizer) -> None:
        self.replica, self.world, self.optimizer = replica, world, optimizer
        self._check_optimizer()
        self._strays, self._spent = Strays(replica), Spent(replica)
        if hasattr(optimizer, "zero_grad"):
            optimizer.zero_grad = ZeroGrad(optimizer, self._after_zero_grad)  # type: ignore[method-assign]
        self.staleness = Staleness()
        self.dropped = 0
        self.finite_check, self.contributes = FiniteCheck(), True
        self.reduction = Reduction()
        for tensor in replica.constants.values():
            agreed = tensor.contiguous()  # the tensor itself, unless it is channels_last or transposed
            world.broadcast(agreed)
            tensor.copy_(agreed)
        for flat in (*replica.pairs, *replica.buffers):
            world.broadcast(flat.memory)
        self._shown, self._adopted = Shown(replica.pairs) if self.rereads else None, False
        self._buffer_windows = [self._into_window(flat) for flat in replica.buffers]
        world.barrier()

    def _check_optimizer(self) -> None:
        fit(self.replica, self.optimizer)

    def _after_zero_grad(self) -> None:
        """The script has called ``optimizer.zero_grad()``."""
        self._spent.refuse()
        for pair in self.replica.pairs:
            if not pair.by_tensor:
                pair.zero_grads()

    def _reduce_where_gradients_lie(self, messages: int) -> None:
        """Collective. Have gradients computed into ``messages`` buffers of the World's, to be reduced there."""
        for pair in self.replica.pairs:
            length = pair.memory.numel() + 1
            pair.use_messages([self.world.buffer(length, pair.memory.dtype) for _ in range(messages)])

    def compress(self, compression: Compression) -> None:
        """Collective, before the first step, for what ``compresses`` names: have it travel in fewer bytes."""
        layouts = [Layout.of(pair) for pair in self.replica.pairs]
        self.reduction = compression.reduction(layouts, self.world.size)

    def step(self, loss: float = 0.0) -> None:
        """Called after ``backward()``, in place of ``optimizer.step()``. Leaves zeroed gradients behind.

        Every gradient of every strategy passes here before anything is done with it, so what has to be checked or
        repaired is checked and repaired here. The exception is ``sends_in_backward``: there gradients pass
        ``AsReady._send``, ``InBackward._update``, ``LayUp._update`` and ``Neuron._complete``.
        """
        if not self._adopted:
            self._adopt_parameters()
        if self.sends_in_backward:
            self._spent.check()
        else:
            self.replica.adopt_strays()
            self.contributes = self.finite_check.admit([pair.grads for pair in self.replica.pairs], loss)
            if not self.contributes:
                self._drop_step()
        self._step()
        self._note_shown()
        self.finite_check.end_step()

    def _adopt_parameters(self) -> None:
        """Make what the script has done to parameters and buffers since the last step a part of the training.

        A strategy that steps inside backward() calls it there, before its first update.

        Raises:
            UsageError: that cannot be.
        """
        self._adopted = True
        self._strays.adopt()
        if self._shown:
            self._shown.carry(self._changed)

    def _note_shown(self) -> None:
        """What the script finds now is the strategy's own doing."""
        self._adopted = False
        if self._shown:
            self._shown.note()

    def _changed(self, number: int, change: Tensor) -> None:
        """The script has changed the parameters of a pair, by ``change`` (n,)."""
        raise UsageError(
            f"the script has changed weights between two steps, and {type(self).__name__.lower()} would lose that or "
            "have ranks differ: choose sync, downpour or local_sgd, which keep it"
        )

    @abstractmethod
    def _step(self) -> None:
        """What the algorithm makes of the gradient that lies in the replica's buffers."""

    def _drop_step(self) -> None:
        """Forget this step's gradient, and what its batch has done to running statistics, if they can be had again."""
        if not all(is_finite(pair.params) for pair in self.replica.pairs):
            whose = f"the parameters of rank {self.world.rank}"
            raise RunFailure(f"diverged: {whose} are not finite; a smaller --lr, or clipping, may help")
        self.replica.zero_grads()
        self.dropped += 1
        for flat, window in zip(self.replica.buffers, self._buffer_windows, strict=True):
            if flat.memory.isnan().any():  # an infinity may be meant, as in a mask
                flat.memory.copy_(self._mean_over_ranks([flat], [window], skip_nan=True)[0])

    def _update_own(self) -> None:
        """The optimizer's step with this rank's own gradient, unless that has been dropped."""
        if self.contributes:
            self.optimizer.step()

    @abstractmethod
    def drain(self) -> None:
        """Called after this rank's last step. Returns when nobody makes steps any more and nothing is in flight.

        Until then this rank serves the others without contributing, so ranks may make different numbers of steps:
        nobody waits for a rank that has made its last step, and every gradient generated is applied. With its own
        state loaded the strategy can go on.
        """

    def parameters(self) -> list[Tensor]:
        """[(n_i,), ...] per pair: the parameters that :meth:`result` delivers; this rank's own unless overridden."""
        return [pair.params for pair in self.replica.pairs]

    def result(self) -> Tensor:
        """(n + b,) what the run would deliver now: the parameters, then the ranks' mean float buffers.

        One-sided: any rank may call it at any time; it costs the others nothing, and training may go on.
        """
        with torch.no_grad():
            buffers = self._mean_over_ranks(self.replica.buffers, self._buffer_windows, skip_nan=True)
            return self.replica.join([*self.parameters(), *buffers])

    def state_dict(self) -> dict[str, Any]:
        """Collective. What a fresh strategy needs to go on as this one would: tensors, numbers, dicts and lists."""
        self.world.barrier()  # what all ranks have sent has arrived
        state = {
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "reduction": self.reduction.state_dict(),
            "parameters": [pair.params.detach().clone() for pair in self.replica.pairs],
            "buffers": [flat.memory.clone() for flat in self.replica.buffers],
            "constants": {name: tensor.clone() for name, tensor in self.replica.constants.items()},
        }
        self.world.barrier()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Collective. Take on a :meth:`state_dict`, this rank's own, in a fresh strategy or after :meth:`drain`."""
        self.reduction.load_state_dict(state["reduction"])
        self.optimizer.load_state_dict(state["optimizer"])
        adopt(state, self.replica)
        self._note_shown()
        self.world.barrier()

    def _into_window(self, flat: Flat) -> Window:
        """Collective. Move ``flat`` into a window, so that result() can average it without its owner's help."""
        window = self.world.window(flat.memory.numel(), flat.memory.dtype)
        window.local.copy_(flat.memory)
        flat.rebase(window.local)
        return window

    def _mean_over_ranks(
        self, flats: Iterable[Flat], windows: Iterable[Window], skip_nan: bool = False
    ) -> list[Tensor]:
        """[(n_i,), ...]: the means of what lies in ``windows``, pulled one rank after the other.

        With ``skip_nan``, ranks whose part holds a NaN are left out, unless all do.
        """
        means = []
        for flat, window in zip(flats, windows, strict=True):
            total, part, count = torch.zeros_like(flat.memory), torch.empty_like(flat.memory), 0
            for rank in range(self.world.size):
                window.pull(part, rank)
                window.flush()
                if not (skip_nan and part.isnan().any()):
                    total.add_(part)
                    count += 1
            means.append(total.div_(count) if count else part)
        return means


def adopt(state: Mapping[str, Any], replica: Replica) -> None:
    """Have the model that is in a :meth:`Strategy.state_dict`, for any strategy to begin with."""
    with torch.no_grad():
        for flat, saved in zip(replica.pairs, state["parameters"], strict=True):
            flat.memory.copy_(saved)
        for buffer, saved in zip(replica.buffers, state["buffers"], strict=True):
            buffer.memory.copy_(saved)
        replica.load_constants(state["constants"])
