"""Local SGD: every rank trains a replica by itself, and from time to time an outer optimizer takes the mean way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpcasync.compression import CODECS, Compression
from hpcasync.errors import UsageError
from hpcasync.reduction import InFlight, Layout
from hpcasync.replica import Replica
from hpcasync.strategies.fragment import Fragment
from hpcasync.strategies.strategy import Strategy
from hpcasync.world import World, split


class Local(Strategy):
    """Local SGD with an outer optimizer: SGD, or the heavy ball (SlowMo).

        every step:               x_r <- optimizer(x_r, g_r(x_r))
        every ``period`` steps:   Delta = (1 / n) Σ_r (anchor - x_r),   m <- outer_momentum m + Delta
                                  anchor <- anchor - outer_lr m,        x_r <- anchor + (x_r - x_r when sent)

    Stich, "Local SGD Converges Fast and Communicates Little", ICLR 2019 (https://arxiv.org/abs/1805.09767): outer_lr 1
    without momentum, so the anchor is the mean of the replicas. With momentum: Wang et al., "SlowMo: Improving
    Communication-Efficient Distributed SGD with Slow Momentum", ICLR 2020, alg. 1 (https://arxiv.org/abs/1910.00643),
    in units of gamma; the inner optimizer's own momentum is kept.

    With a ``delay`` the sum travels during that many steps, and what a rank does meanwhile is kept. A delay of a whole
    period is CoCoD-SGD: Shen et al., "Faster Distributed Deep Net Training: Computation and Communication Decoupled
    Stochastic Gradient Descent", IJCAI 2019, alg. 1 (https://arxiv.org/abs/1906.12043).

    A round waits for every rank that makes steps, as ``sync`` does, but so much more seldom that random jitter averages
    out; a rank that is always slow is waited for all the same. The mean is over the ranks that made a step since the
    last round. What runs deliver is the anchor, the same on all ranks.

    Args:
        period: steps between two rounds (H).
        outer_lr, outer_momentum: of the outer optimizer.
        delay: steps that a rank makes while a round is on its way, at most ``period``.

    Raises:
        UsageError: a period below 1, a delay that is not in [0, period], an outer_lr that is not above 0, or an
            outer_momentum that is not in [0, 1).
    """

    compresses = CODECS
    _fragment_count = 1
    _keeps_sent = True

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        period: int = 10,
        outer_lr: float = 1.0,
        outer_momentum: float = 0.0,
        delay: int = 0,
    ) -> None:
        if period < 1:
            raise UsageError(f"period={period}: it counts steps, so 1 or more")
        if not 0 <= delay <= period:
            raise UsageError(f"delay={delay}: it counts steps, from 0 to the period of {period}")
        if not outer_lr > 0:
            raise UsageError(f"outer_lr={outer_lr}: it is above 0")
        if not 0 <= outer_momentum < 1:
            raise UsageError(f"outer_momentum={outer_momentum}: it is in [0, 1)")
        super().__init__(replica, world, optimizer)
        self.period, self.outer_lr, self.outer_momentum, self.delay = period, outer_lr, outer_momentum, delay
        self._anchors = [pair.params.detach().clone() for pair in replica.pairs]
        self._momenta = [torch.zeros_like(anchor) for anchor in self._anchors] if outer_momentum else []
        self._steps = 0  # of the schedule, which goes on while this rank waits for the others to end
        self._fragments = self._divide()
        world.barrier()

    def compress(self, compression: Compression) -> None:
        for fragment in self._fragments:
            layouts = [Layout.of(pair, *span) for pair, span in zip(self.replica.pairs, fragment.spans, strict=True)]
            fragment.reduction = compression.reduction(layouts, self.world.size)

    def _step(self) -> None:
        self._update_own()
        self.replica.zero_grads()
        for fragment in self._fragments:
            fragment.fresh = True
        self.staleness.record(0)
        self._tick()

    def drain(self) -> None:
        while not self._alone and self._tick():
            pass
        for fragment in self._in_flight():
            fragment.land()  # sent after the first round that nobody contributed to: nobody did to these, either
        for pair, whole in zip(self.replica.pairs, self.parameters(), strict=True):
            pair.params.copy_(whole)

    def parameters(self) -> list[Tensor]:
        return super().parameters() if self._alone else self._anchors

    def state_dict(self) -> dict[str, Any]:
        for fragment in self._in_flight():
            fragment.wait()
        return {
            **super().state_dict(),
            "anchors": [anchor.clone() for anchor in self._anchors],
            "momenta": [momentum.clone() for momentum in self._momenta],
            "fragments": [fragment.state() for fragment in self._fragments],
            "steps": self._steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for own, saved in zip((*self._anchors, *self._momenta), (*state["anchors"], *state["momenta"]), strict=True):
            own.copy_(saved)
        for fragment, saved in zip(self._fragments, state["fragments"], strict=True):
            fragment.restore(saved)
        self._steps = int(state["steps"])
        super().load_state_dict(state)

    @property
    def _alone(self) -> bool:
        """A rank alone that averages has nothing to do, and anchor - (anchor - x) need not be x in floating point."""
        return self.world.size == 1 and self.outer_lr == 1 and self.outer_momentum == 0

    def _divide(self) -> list[Fragment]:
        """Collective. The fragments, each with its share of every pair, sent at equal distances in a period."""
        fragments, count = [], self._fragment_count
        for number in range(count):
            spans = [split(anchor.numel(), count)[number] for anchor in self._anchors]
            messages = [
                self.world.buffer(stop - start + 1, anchor.dtype)
                for (start, stop), anchor in zip(spans, self._anchors, strict=True)
            ]
            offset = (number + 1) * self.period // count
            fragments.append(Fragment(spans, messages, offset % self.period, self._keeps_sent and self.delay > 0))
        return fragments

    def _tick(self) -> bool:
        """One step of the schedule. False when a round has come that nobody contributed to: all have ended."""
        self._steps += 1
        going = self._land_due()
        for fragment in self._fragments:
            if self._steps % self.period == fragment.offset:
                self._send(fragment)
        return (self.delay > 0 or self._land_due()) and going

    def _land_due(self) -> bool:
        due = [fragment for fragment in self._in_flight() if self._steps - fragment.sent_in_step >= self.delay]
        going = [self._land(fragment) for fragment in due]
        return all(going)

    def _in_flight(self) -> list[Fragment]:
        """In the order in which they were sent."""
        return sorted((f for f in self._fragments if f.flight is not None), key=lambda f: f.sent_in_step)

    def _send(self, fragment: Fragment) -> None:
        if self._alone:
            return
        fragment.fill(self._anchors, [pair.params for pair in self.replica.pairs])
        fragment.sent_in_step = self._steps
        if self.delay:
            fragment.flight = InFlight(fragment.reduction.stages(self.world, fragment.messages))
        else:
            fragment.reduction.whole(self.world, fragment.messages)
            fragment.flight = InFlight(iter(()))

    def _land(self, fragment: Fragment) -> bool:
        """Have the outer optimizer take the mean way. False when nobody has contributed."""
        count = fragment.land()
        for number, (start, stop) in enumerate(fragment.spans):
            if not count:
                break
            mean = fragment.messages[number][:-1].div_(count)
            anchor = self._anchors[number][start:stop]
            anchor.sub_(self._outer(mean, number, start, stop), alpha=self.outer_lr)
            sent = fragment.sent[number] if fragment.sent else None
            self._merge(self.replica.pairs[number].params[start:stop], anchor, sent)
        return bool(count)

    def _outer(self, mean: Tensor, number: int, start: int, stop: int) -> Tensor:
        """The way that the anchor goes, over outer_lr; ``mean`` may be overwritten."""
        if not self.outer_momentum:
            return mean
        return self._momenta[number][start:stop].mul_(self.outer_momentum).add_(mean)

    def _merge(self, params: Tensor, anchor: Tensor, sent: Tensor | None) -> None:
        """Have the anchor in the replica, which has gone on since its ``sent``, if that is not None."""
        if sent is not None:
            params.sub_(sent).add_(anchor)
        else:
            params.copy_(anchor)


class DiLoCo(Local):
    """DiLoCo: long periods by any inner optimizer, and Nesterov's momentum outside.

        every ``period`` steps:   m <- outer_momentum m + Delta
                                  anchor <- anchor - outer_lr (Delta + outer_momentum m),   x_r <- anchor

    Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023, alg. 1
    (https://arxiv.org/abs/2311.08105), there with AdamW inside. With period 1, SGD inside, outer_lr 1 and no outer
    momentum it is synchronous SGD. See ``local_sgd`` for Delta, and for whom a round waits.

    Args:
        period, outer_lr, outer_momentum, delay: as of ``local_sgd``.
    """

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        period: int = 500,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        delay: int = 0,
    ) -> None:
        super().__init__(replica, world, optimizer, period, outer_lr, outer_momentum, delay)

    def _outer(self, mean: Tensor, number: int, start: int, stop: int) -> Tensor:
        if not self.outer_momentum:
            return mean
        momentum = self._momenta[number][start:stop].mul_(self.outer_momentum).add_(mean)
        return mean.add_(momentum, alpha=self.outer_momentum)


class StreamingDiLoCo(DiLoCo):
    """DiLoCo that sends one fragment of the parameters after the other, each while training goes on.

        every ``period`` steps, fragment p at p / fragments of it:   anchor_p <- as ``diloco``, ``delay`` steps later
                                                                     x_p <- mix x_p + (1 - mix) anchor_p

    Douillard et al., "Streaming DiLoCo with overlapping communication: Towards a Distributed Free Lunch", 2025
    (https://arxiv.org/abs/2501.18512), with outer momentum 0.9. The peak of the traffic falls by the number of
    fragments, and nobody waits for the wire while a fragment takes fewer than ``delay`` steps. Without a delay nothing
    is mixed, for no step was made meanwhile; with one fragment and no delay this is ``diloco``. Fragments are equal
    spans of the flat parameters, not sets of layers.

    Args:
        period, outer_lr, delay: as of ``local_sgd``.
        fragments: how many, at most ``period``.
        mix: the share of its own parameters that a rank keeps when a fragment arrives.

    Raises:
        UsageError: fragments that are not in [1, period], a mix that is not in [0, 1), or as ``local_sgd`` says.
    """

    _keeps_sent = False

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        period: int = 100,
        fragments: int = 4,
        delay: int = 5,
        mix: float = 0.5,
        outer_lr: float = 0.4,
    ) -> None:
        if not 1 <= fragments <= period:
            raise UsageError(f"fragments={fragments}: they are sent one per step at most, so from 1 to {period}")
        if not 0 <= mix < 1:
            raise UsageError(f"mix={mix}: it is a share that is kept, in [0, 1)")
        self.mix, self._fragment_count = mix, fragments
        super().__init__(replica, world, optimizer, period, outer_lr, 0.9, delay)

    def _merge(self, params: Tensor, anchor: Tensor, sent: Tensor | None) -> None:
        if self.delay:
            params.lerp_(anchor, 1 - self.mix)
        else:
            params.copy_(anchor)
