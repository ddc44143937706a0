"""One neuron at a time: a row of a weight with its bias, or a block of them, updated asynchronously."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from hpcasync.clock import Staleness
from hpcasync.errors import UsageError
from hpcasync.replica import Replica, dense
from hpcasync.strategies.neuron_ahead import Ahead, RoundRobin, Uniform
from hpcasync.strategies.neuron_layout import layers_of, periods_of, rates_of
from hpcasync.strategies.neuron_select import Greedy, Ready, Selection
from hpcasync.strategies.neuron_update import Neurons
from hpcasync.strategies.strategy import Strategy
from hpcasync.world import RankFailed, World

Select = Literal["ready", "cyclic", "random", "greedy"]


class Neuron(Strategy):
    """Asynchronous block coordinate descent whose coordinates are neurons.

        x_b <- x_b - gamma_b · g_{r,b}(x_read)     by every rank r, for one block b of neurons at a time

    b is, with ``select``:

    * ``ready``: every block in every step, inside backward(), as soon as its layer's gradient is complete;
    * ``cyclic``: one block per step, in turn; the ranks begin at different ones;
    * ``random``: one block per step, all equally likely (AsySCD);
    * ``greedy``: the block of the step with the largest gradient, argmax_b rate_b |g_b|^2 (Gauss-Southwell; with
      ``rates=fan_in``, where 1 / rate_b is a neuron's curvature up to a factor, Gauss-Southwell-Lipschitz).

    Bertsekas and Tsitsiklis, "Parallel and Distributed Computation", 1989, ch. 6 and 7 (every block is updated again
    and again, by whoever, with bounded delays); Liu and Wright, "Asynchronous Stochastic Coordinate Descent:
    Parallelism and Convergence Properties", SIAM J. Optim. 2015, alg. 1 (https://arxiv.org/abs/1403.3862); Nutini et
    al., "Coordinate Descent Converges Faster with the Gauss-Southwell Rule Than Random Selection", ICML 2015
    (https://arxiv.org/abs/1506.00552); You et al., "Asynchronous Parallel Greedy Coordinate Descent", NeurIPS 2016
    (https://papers.nips.cc/paper/6174-asynchronous-parallel-greedy-coordinate-descent).

    The shared parameters lie in windows, a shard per rank, and a rank reads the blocks that others have updated before
    each forward(). ``lease`` keeps two ranks from updating a block on top of each other: it is had for the version of
    the block that was read, given back with the update, and whoever does not get it takes the next block. Greedy ranks
    need it: they see the same largest gradient, and k of them that step on it at once make a step k times too long.
    With ``ready`` every rank updates every block, so there are no leases.

    Memory: with ``cyclic`` and ``random``, of the weights of linear layers and 2-d convolutions only the gradient of
    the block's rows is computed. Otherwise autograd hands over a whole tensor's gradient, so the bound is the largest
    layer; what is not selected is freed at once (where a World cannot wait inside backward(), ``ready`` keeps it until
    step()). The optimizer's state is made block by block when a rank first updates one, and stays that rank's own.

    Args:
        block: neurons of a layer that are updated together. What is nobody's row is one block per layer.
        select: see above.
        lease: on or off.
        rates: every block's learning rate as a factor of the optimizer's: a number, ``fan_in`` (the fewest inputs of a
            neuron over this one's) or LAYER:NUMBER,... (1 for the others).
        periods: a block is updated in one of so many of its turns: a number, ``spread:K`` (1, 2, ..., K, 1, 2, ...) or
            LAYER:NUMBER,... (1 for the others).

    Attributes:
        staleness: for every update of a block, the updates of it that others made since this rank read it;
            ``layer_staleness`` has the same as {layer: of its blocks}.
        dropped: steps of this rank that updated nothing, because no lease was to be had.
        peak_gradient_bytes: the most bytes of gradient held at one time so far.

    Raises:
        UsageError: a value that is not one of these; an optimizer that is not of ``replica.parameters()``; by
            backward(), when it is called twice in a step.
    """

    sends_in_backward = True
    rereads = True

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        block: int = 1,
        select: Select = "ready",
        lease: Literal["on", "off"] = "on",
        rates: str = "1",
        periods: str = "1",
    ) -> None:
        layers = layers_of(replica, block)
        factors, turns = rates_of(rates, layers), periods_of(periods, layers)
        super().__init__(replica, world, optimizer)
        self.layer_staleness = {layer.name: Staleness() for layer in layers}
        self._neurons = Neurons(replica, world, optimizer, layers, factors, turns, self._record)
        self._selection = self._rule(select, lease == "on")
        self._places = {
            pair.tensors[number]: (layer, (index, number))
            for layer in layers
            for index, number in layer.tensors
            for pair in [replica.pairs[index]]
        }
        self.peak_gradient_bytes = 0
        for pair in replica.pairs:
            pair.forget_grads()
        replica.watch_grads(self._complete)
        self._begin()
        self._note_shown()  # another rank may have made an update already

    def _check_optimizer(self) -> None:
        """PieceOptimizer does, and holds what no other optimizer does."""

    def _changed(self, number: int, change: Tensor) -> None:
        if self.world.size > 1:
            super()._changed(number, change)

    def versions(self) -> Tensor:
        """(blocks,) int64: how often each block has been updated, by all ranks.

        One-sided: any rank may call it at any time.
        """
        return self._neurons.board.versions(0, len(self._neurons.blocks))

    def _step(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._finish()
        self._begin()

    def drain(self) -> None:
        self._selection.leave()
        self.world.barrier()
        self._neurons.board.fetch_all()

    def parameters(self) -> list[Tensor]:
        return self._neurons.board.parameters()

    def state_dict(self) -> dict[str, Any]:
        self.world.barrier()  # all updates have arrived, and all leases of the next step are taken
        return {
            **super().state_dict(),
            "board": self._neurons.board.state_dict(),
            "turns": list(self._neurons.turns),
            "selection": self._selection.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.world.barrier()  # nobody takes a lease any more
        self._neurons.board.load_state_dict(state["board"])
        self._neurons.turns[:] = state["turns"]
        self._selection.load_state_dict(state["selection"])
        super().load_state_dict(state)

    def _rule(self, select: Select, leases: bool) -> Selection:
        count, rank, size = len(self._neurons.blocks), self.world.rank, self.world.size
        if select == "cyclic":
            return Ahead(self._neurons, self.replica, RoundRobin(count, first=rank * count // size), leases)
        if select == "random":
            return Ahead(self._neurons, self.replica, Uniform(count, seed=rank), leases)
        if select == "greedy":
            return Greedy(self._neurons, leases, keep=size)
        return Ready(self._neurons, self.world.can_wait_in_backward)

    def _begin(self) -> None:
        """A step begins: choose, then read what others have done."""
        self._missing = {layer.name: len(layer.tensors) for layer in self._neurons.layers}
        self._seen: set[Tensor] = set()  # tensors whose gradient is complete
        self._spent.clear()
        self._failure: RankFailed | None = None
        self._selection.begin()
        self._neurons.board.refresh()

    def _complete(self, tensor: Tensor) -> None:
        """backward() has completed a tensor's gradient. That a rank has died is left for step() to say."""
        if tensor in self._seen:
            raise UsageError(
                "a second gradient for a parameter within one step: neuron updates inside backward(), so it takes one "
                "backward() per step(); add up the losses before backward(), or choose hogwild or downpour"
            )
        if not self._seen:
            self._adopt_parameters()
        self._seen.add(tensor)
        gradient = tensor.grad
        if gradient is None or tensor not in self._places:
            return
        gradient = dense(gradient)
        self.finite_check.clean(gradient)
        self._spent.mark([tensor])
        layer, place = self._places[tensor]
        self.peak_gradient_bytes = max(self.peak_gradient_bytes, gradient.nbytes + self._selection.gradient_bytes)
        self._selection.take(layer, place, gradient)
        self._missing[layer.name] -= 1
        if self._missing[layer.name] == 0:
            try:
                self._selection.complete(layer)
            except RankFailed as failure:
                self._failure = failure

    def _finish(self) -> None:
        """backward() is over: update with what it has left."""
        for tensor in self._places:
            if tensor.grad is not None and tensor not in self._seen:  # somebody has set it
                self._complete(tensor)
        for layer in self._neurons.layers:
            if 0 < self._missing[layer.name] < len(layer.tensors):
                self._selection.complete(layer)
        if not self._selection.finish():
            self.dropped += 1

    def _record(self, layer: str, staleness: int) -> None:
        self.staleness.record(staleness)
        self.layer_staleness[layer].record(staleness)
