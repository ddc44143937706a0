"""A part of the parameters that is exchanged in one go, and the one exchange of it that may be under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hpcasync.reduction import InFlight, Reduction


class Fragment:
    """Elements [start, stop) of every pair, and what is sent of them: anchor - x, with a count behind.

    Args:
        spans: [(start, stop), ...], one per pair.
        messages: [(stop - start + 1,), ...] what travels; messages[0][-1] counts the contributions.
        offset: the step of a period in which it is sent.
        keeps_sent: keep the parameters as they were when sent.

    Attributes:
        reduction: how the ranks' messages become their sums.
        fresh: the rank has made a step since this was sent.
        flight: the exchange, until somebody has landed it.
        sent: [(stop - start,), ...] the parameters when sent, if kept.
    """

    def __init__(
        self, spans: Sequence[tuple[int, int]], messages: Sequence[Tensor], offset: int, keeps_sent: bool
    ) -> None:
        self.spans, self.messages, self.offset = spans, messages, offset
        self.sent = [torch.zeros_like(message[:-1]) for message in messages] if keeps_sent else []
        self.reduction = Reduction()
        self.fresh = False
        self.flight: InFlight | None = None
        self.sent_in_step = 0

    def fill(self, anchors: Sequence[Tensor], params: Sequence[Tensor]) -> None:
        """Have anchor - x in the messages if this rank has something to contribute, else nothing."""
        parts = zip(self.spans, self.messages, anchors, params, strict=True)
        for number, ((start, stop), message, anchor, x) in enumerate(parts):
            message.zero_()
            if self.fresh:
                torch.sub(anchor[start:stop], x[start:stop], out=message[:-1])
            if self.sent:
                self.sent[number].copy_(x[start:stop])
        self.messages[0][-1] = self.fresh
        self.fresh = False

    def wait(self) -> int:
        """Return when the sums are in the messages: how many ranks have contributed."""
        if self.flight is not None:
            self.flight.wait()
        return int(self.messages[0][-1])

    def land(self) -> int:
        """:meth:`wait`, and be ready to be sent again."""
        count = self.wait()
        self.flight = None
        return count

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs, after :meth:`wait`."""
        return {
            "messages": [message.clone() for message in self.messages],
            "sent": [sent.clone() for sent in self.sent],
            "reduction": self.reduction.state_dict(),
            "fresh": self.fresh,
            "in_flight": self.flight is not None,
            "sent_in_step": self.sent_in_step,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take on a :meth:`state`."""
        for own, saved in zip((*self.messages, *self.sent), (*state["messages"], *state["sent"]), strict=True):
            own.copy_(saved)
        self.reduction.load_state_dict(state["reduction"])
        self.fresh = bool(state["fresh"])
        self.flight = InFlight(iter(())) if state["in_flight"] else None
        self.sent_in_step = int(state["sent_in_step"])
