"""One training step of every subject: our strategies, no exchange at all, Horovod, and PyTorch's DDP.

All of them compute the same, and ``hpcasync.faults`` slows all of them down by the same law.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcasync.bench.workloads import Workload
from hpcasync.replica import Replica
from hpcasync.strategies import Choice, Strategy
from hpcasync.world import World


class Trainer(Protocol):
    """Trains one rank's model. ``lockstep``: the ranks make the same number of steps, or wait for ever."""

    lockstep: bool

    def step(self, x: Tensor, y: Tensor) -> None:
        """Forward, backward, exchange, update."""
        ...

    def end(self) -> None:
        """Collective. After the last step."""
        ...


def compute(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """One forward and backward pass; the gradients are added to what is there."""
    torch.autograd.backward(F.cross_entropy(model(x), y))


class Paced:
    """The same, with the time by which a step is padded spent between the passes.

    Gradients are ready when computing ends, and no sooner: whoever exchanges them inside backward() must not hide that
    in a pause that stands for the computing itself. How long backward() takes is known from the step before, in this
    thread's CPU time: waiting for others inside it is no computation to be slowed down.
    """

    def __init__(self, world: World) -> None:
        self._world, self._backward_seconds = world, 0.0

    def compute(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        started = time.thread_time()
        loss = F.cross_entropy(model(x), y)
        self._world.computed(time.thread_time() - started + self._backward_seconds)
        started = time.thread_time()
        torch.autograd.backward(loss)
        self._backward_seconds = time.thread_time() - started


class Alone(Strategy):
    """No exchange at all: every rank trains its own model. What the ranks could do if communication were free."""

    def _step(self) -> None:
        self.optimizer.step()
        self.replica.zero_grads()

    def drain(self) -> None:
        self.world.barrier()


class Ours:
    """A strategy of hpcasync, called as ``hpcasync.run`` calls it."""

    lockstep = False

    def __init__(self, workload: Workload, world: World, choice: Choice | None) -> None:
        """``choice``: None for no exchange."""
        self.model, self._paced = workload.model(), Paced(world)
        replica = Replica(self.model)
        optimizer = workload.optimizer(replica.parameters())
        self.strategy = choice.build(replica, world, optimizer) if choice else Alone(replica, world, optimizer)

    def step(self, x: Tensor, y: Tensor) -> None:
        self._paced.compute(self.model, x, y)
        self.strategy.step()

    def end(self) -> None:
        self.strategy.drain()


class Horovod:
    """``hvd.DistributedOptimizer``: allreduces begin in backward() and are waited for in the optimizer's step()."""

    lockstep = True

    def __init__(self, workload: Workload, world: World) -> None:
        import horovod.torch as hvd

        hvd.init()
        self._hvd, self._paced = hvd, Paced(world)
        self._model = workload.model()
        hvd.broadcast_parameters(self._model.state_dict(), root_rank=0)
        self._optimizer = hvd.DistributedOptimizer(
            workload.optimizer(self._model.parameters()), named_parameters=self._model.named_parameters()
        )

    def step(self, x: Tensor, y: Tensor) -> None:
        self._optimizer.zero_grad()
        self._paced.compute(self._model, x, y)
        self._optimizer.step()

    def end(self) -> None:
        self._hvd.shutdown()


class DDP:
    """``DistributedDataParallel`` over gloo: buckets are reduced in backward(), which returns when all have arrived."""

    lockstep = True

    def __init__(self, workload: Workload, world: World) -> None:
        join_gloo(world)
        self._paced = Paced(world)
        self._model = torch.nn.parallel.DistributedDataParallel(workload.model())
        self._optimizer = workload.optimizer(self._model.parameters())

    def step(self, x: Tensor, y: Tensor) -> None:
        self._optimizer.zero_grad()
        self._paced.compute(self._model, x, y)
        self._optimizer.step()

    def end(self) -> None:
        torch.distributed.destroy_process_group()


def join_gloo(world: World) -> None:
    """Collective. Make the ranks a process group of torch.distributed; they meet at a free port of 127.0.0.1."""
    from torch import distributed

    meet = partial(distributed.TCPStore, "127.0.0.1")  # type: ignore[attr-defined]  # public, but not in __all__
    port = torch.zeros(1, dtype=torch.int64)
    if world.rank == 0:
        store = meet(0, world.size, is_master=True, wait_for_workers=False)
        port.fill_(store.port)
    world.broadcast(port)
    if world.rank != 0:
        store = meet(int(port), world.size, is_master=False)
    distributed.init_process_group("gloo", store=store, rank=world.rank, world_size=world.size)
