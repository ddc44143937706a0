"""Samples per second of one subject, measured on every rank of a launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hpcasync.bench.trainers import DDP, Horovod, Ours, Trainer, compute
from hpcasync.bench.workloads import WORKLOADS, Workload
from hpcasync.faults import Faults
from hpcasync.laws import parse_law
from hpcasync.strategies import parse_strategy
from hpcasync.world import World

METRIC, UNIT = "samples_per_second", "1/s"
NONE = "none"  # the subject that exchanges nothing
LOCKSTEP = "lockstep"  # not measured: what ranks reach that all wait for the slowest, and lose nothing else
NO_THREAD = ", no progress thread"  # ends a subject that is a strategy without MPIWorld's thread

_PEERS: dict[str, Callable[[Workload, World], Trainer]] = {"horovod": Horovod, "ddp": DDP}


def measure(
    world: World,
    repeat: int,
    *,
    case: str,
    subject: str,
    workload: str,
    seconds: float,
    warmup_seconds: float,
    step_seconds: float = 0.0,
    slow_factor: float = 1.0,
    jitter: str | None = None,
    computed: bool = False,
) -> list[dict[str, Any]]:
    """Collective. The subject's samples per second, summed over the ranks.

    Args:
        subject: "none", a peer's name, or a strategy as on the command line.
        workload: a name in WORKLOADS.
        step_seconds, slow_factor, jitter: see ``hpcasync.faults``; the last rank is the slow one.
        computed: the slow rank computes its step ``slow_factor`` times instead of sleeping.
    """
    work = WORKLOADS[workload]
    slow = {world.size - 1: slow_factor}
    paced = bool(step_seconds or jitter or (slow_factor > 1 and not computed))
    if paced:
        law = parse_law(jitter) if jitter else None
        world = Faults(world, slow if not computed else {}, law, step_seconds, seed=repeat)
    trainer = _trainer(subject, work, world)
    extra = int(slow.get(world.rank, 1)) - 1 if computed else 0
    steps, elapsed = train(world, trainer, work, warmup_seconds, seconds, extra)
    trainer.end()  # before any other collective: ranks may still be making steps, which others take part in until then
    rates = _gather(world, work.batch * steps / elapsed)
    entry: dict[str, Any] = {"case": case, "metric": METRIC, "unit": UNIT}
    samples = [entry | {"subject": subject, "value": sum(rates), "ranks": rates}]
    if subject == NONE and paced:
        samples.append(entry | {"subject": LOCKSTEP, "value": lockstep(rates, jitter)})
    return samples


def lockstep(rates: Sequence[float], jitter: str | None) -> float:
    """Samples per second of ranks that wait for each other in every step, given their rates when they do not.

    n times the slowest rank's rate; with exponential step times, whose largest of n is H_n = 1 + 1/2 + ... + 1/n
    means long, the sum of the rates over H_n.
    """
    if jitter is None:
        return len(rates) * min(rates)
    if jitter != "exponential":
        raise ValueError(f"no closed form for jitter {jitter!r}")
    return sum(rates) / sum(1 / i for i in range(1, len(rates) + 1))


def train(
    world: World, trainer: Trainer, work: Workload, warmup_seconds: float, seconds: float, extra: int
) -> tuple[int, float]:
    """(steps, the seconds they took) on this rank: the whole steps from the first that ends after the warm-up to the
    first that ends ``seconds`` later. So neither a step cut in two nor a slow rank's few steps bias the rate.

    All ranks train until all have measured. ``extra``: how many times a step is computed before, and thrown away.
    """
    x, y = work.samples()
    spare = work.model()
    ending = _Ending(world, trainer.lockstep)
    world.barrier()
    begin = world.now() + warmup_seconds
    steps, first, last = 0, (0, 0.0), (0, 0.0)
    while not ending.reached(steps):
        for _ in range(extra):
            compute(spare, x, y)
        trainer.step(x, y)
        steps += 1
        now = world.now()
        if not first[0] and now >= begin:
            first = (steps, now)
        elif first[0] and not last[0] and now >= begin + seconds:
            last = (steps, now)
            ending.announce(steps)
    if not last[0]:  # lockstep, and rank 0 was the first to have measured
        last = (steps, world.now())
    return last[0] - first[0], last[1] - first[1]


class _Ending:
    """When to make no further step: everybody has measured.

    Ranks in lockstep must stop after the same step. Rank 0 says which: two after the one it announces it at. No rank
    can finish the next before rank 0, which has spoken by then, takes part in it; so all know before the one after.
    """

    def __init__(self, world: World, lockstep: bool) -> None:
        self._world, self._lockstep = world, lockstep
        self._window = world.window(1, torch.int64)

    def announce(self, steps: int) -> None:
        if self._lockstep and self._world.rank != 0:
            return
        word = torch.tensor([steps + 2 if self._lockstep else 1])
        for rank in range(self._world.size):
            self._window.push(word, rank)
        self._window.flush()

    def reached(self, steps: int) -> bool:
        told = int(self._window.local)
        return 0 < told <= steps if self._lockstep else told == self._world.size


def _trainer(subject: str, work: Workload, world: World) -> Trainer:
    torch.manual_seed(0)
    peer = _PEERS.get(subject.partition(",")[0])  # "horovod, cycle 0.1 ms" is Horovod, too
    if peer is not None:
        return peer(work, world)
    words = subject.removesuffix(NO_THREAD).split()
    return Ours(work, world, None if subject == NONE else parse_strategy(words))


def _gather(world: World, value: float) -> list[float]:
    table = torch.zeros(world.size, dtype=torch.float64)
    table[world.rank] = value
    world.allreduce(table)
    rates: list[float] = table.tolist()
    return rates
