"""What a script changes in parameters that a strategy reads anew from elsewhere, so that the change is not lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hpcasync.replica import Pair


class Shown:
    """The parameters as a step has left them, compared with what the next one finds: clamped, say, or assigned.

    Costs a copy of the parameters, and three passes over them per step.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs
        self._copies = [pair.params.detach().clone() for pair in pairs]

    def note(self) -> None:
        """The parameters are now what the strategy has made them."""
        for pair, copy in zip(self._pairs, self._copies, strict=True):
            copy.copy_(pair.params)

    def carry(self, changed: Callable[[int, Tensor], None]) -> None:
        """Have ``changed(pair, by)`` called for each pair of which something has changed, by (n,).

        Parameters that are not finite do not count. :meth:`note` has to be called before the next time.
        """
        for number, (pair, copy) in enumerate(zip(self._pairs, self._copies, strict=True)):
            torch.sub(pair.params, copy, out=copy)
            if copy.numel():
                low, high = map(float, copy.aminmax())
                if low < 0 or high > 0:
                    changed(number, copy)
