"""A model laid on flat vectors, so that an equation on a parameter vector is one line of code.

Every trainable parameter becomes a view of one vector ``params`` (n,), and its gradient a view of one vector ``grads``
(n,). MPI reads and writes these vectors directly, and ``torch.optim`` sees one parameter. A model with parameters of
several dtypes has one such pair per dtype, widest first.

What the corners mean:

* **tied weights** are one span; both modules see the same memory.
* **constants** are on no vector: frozen parameters (``requires_grad=False``), and buffers that are not float, such as
  BatchNorm's ``num_batches_tracked``. The ranks agree on them at the start and after a death. A job may change them
  (an EMA teacher, a target network): each rank changes its own.
* **a parameter without a gradient in a step** contributes a gradient of zero, so momentum and weight decay still act on
  it (plain PyTorch would skip it).
* **float buffers**, such as BatchNorm's running statistics, lie on vectors of their own, are never exchanged during
  training, and are averaged over the ranks by ``Strategy.result()``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import attrgetter
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hpcasync.errors import UsageError

T = TypeVar("T", bound=Tensor)
_grad, _pointer = attrgetter("grad"), Tensor.data_ptr


@dataclass(frozen=True)
class Span:
    """Elements [start, stop) of a flat vector, which a tensor of this name and shape occupies."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]

    def rows(self) -> list[tuple[int, int]]:
        """[start, stop) of every row: a neuron's incoming weights. A vector's rows are its elements."""
        count = self.shape[0] if self.shape else 1
        width = (self.stop - self.start) // max(count, 1)
        return [(self.start + i * width, self.start + (i + 1) * width) for i in range(count)]


class Flat:
    """Tensors of one dtype, laid end to end on one vector ``memory`` (n,) of which they become views."""

    def __init__(self, named: Sequence[tuple[str, Tensor]]) -> None:
        self.tensors = [tensor for _, tensor in named]
        self.spans: list[Span] = []
        start = 0
        for name, tensor in named:
            self.spans.append(Span(name, start, start + tensor.numel(), tuple(tensor.shape)))
            start += tensor.numel()
        first = self.tensors[0]
        memory = torch.empty(start, dtype=first.dtype, device=first.device)
        for tensor, view in zip(self.tensors, self.views(memory), strict=True):
            view.copy_(tensor.detach())
        self.rebase(memory)

    def views(self, memory: Tensor) -> list[Tensor]:
        """``memory`` (at least n,) seen as the tensors, in order."""
        return [memory[span.start : span.stop].view(span.shape) for span in self.spans]

    def rebase(self, memory: Tensor) -> None:
        """Make the tensors views of ``memory`` (n,) and take on its values; it may be a window's or a node's."""
        self.memory = memory
        for tensor, view in zip(self.tensors, self.views(memory), strict=True):
            tensor.data = view
        self._pointers = [*map(_pointer, self.tensors)]

    def adopt_values(self) -> None:
        """Make tensors that a script has given other memory (``p.data = x``, ``model.to(...)``) views again.

        Raises:
            UsageError: a tensor has another shape, dtype or device than its place.
        """
        if [*map(_pointer, self.tensors)] == self._pointers:
            return
        places = zip(self.tensors, self._pointers, self.spans, self.views(self.memory), strict=True)
        for tensor, pointer, span, view in places:
            if tensor.data_ptr() != pointer:
                fill(view, tensor, span.name)
                tensor.data = view


class Pair(Flat):
    """The parameters and gradients of one dtype.

    The gradient buffer is a ``message`` (n + 1,): the gradient and, behind it, one element for the number of ranks that
    contributed, so that one reduction carries both. (A message of bfloat16 alone holds counts up to 256 exactly.)

    Attributes:
        by_tensor: True if the optimizer holds the tensors in place of the flat parameter.
    """

    by_tensor = False

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]]) -> None:
        super().__init__(named)
        self.flat = nn.Parameter(self.memory)
        self._spare: list[Tensor] = []
        self._views: dict[int, list[Tensor]] = {}
        self.has_grads = True
        self._use(self._empty_message())

    @property
    def params(self) -> Tensor:
        """(n,) the parameters."""
        return self.memory

    @property
    def grads(self) -> Tensor:
        """(n,) where backward() adds the gradient."""
        return self.message[:-1]

    def rebase(self, memory: Tensor) -> None:
        super().rebase(memory)
        if hasattr(self, "flat"):
            self.flat.data = memory

    def use_messages(self, messages: Sequence[Tensor]) -> None:
        """Rotate through these zeroed messages (n + 1,) from now on, for example a World's buffers."""
        self.has_grads = True
        self._spare = list(messages)
        self._views.clear()
        self._use(self._spare.pop())

    def renew_grads(self) -> Tensor:
        """Give backward() a zeroed buffer and return the filled message (n + 1,). Nothing is copied."""
        filled = self.message
        self._use(self._spare.pop() if self._spare else self._empty_message())
        return filled

    def recycle(self, message: Tensor) -> None:
        """Take back a message that :meth:`renew_grads` gave away."""
        self._spare.append(message.zero_())

    def adopt_strays(self, first: int = 0, stop: int | None = None) -> None:
        """Bring home gradients that left the buffer, for example after ``model.zero_grad()``, which forgets them.

        Only those of tensors [first, stop), if given.

        Raises:
            UsageError: the buffer is empty, and something has been done to it.
        """
        tensors, pointers = self.tensors[first:stop], self._grad_pointers[first:stop]
        if _grads_lie_at(pointers, tensors):
            return
        if stop is None and self.message._version != self._clean_version and not self.grads.any():
            raise UsageError(
                "gradients are clipped or changed on replica.parameters(), and model.zero_grad() has taken them from "
                "there: call optimizer.zero_grad(), or clip model.parameters()"
            )
        views = self._views[self.message.data_ptr()]
        places = zip(tensors, self.spans[first:stop], strict=True)
        for number, (tensor, span) in enumerate(places, start=first):
            if _grads_lie_at([self._grad_pointers[number]], [tensor]):
                continue
            # another view: scripts can move this one, too (model.to() does)
            view = views[number] = self.message[span.start : span.stop].view(span.shape)
            if tensor.grad is None:
                view.zero_()
            else:
                view.copy_(dense(tensor.grad.detach()))
            tensor.grad = view

    def adopt_flat_grad(self) -> None:
        """Bring home the flat parameter's gradient, if a script has assigned another."""
        if not _grads_lie_at([self.message.data_ptr()], [self.flat]):
            if self.flat.grad is not None:
                self.grads.copy_(self.flat.grad.detach())
            self.flat.grad = self.grads

    def clear(self) -> None:
        """Zero the message."""
        self.message.zero_()
        self._clean_version = self.message._version

    def zero_grads(self) -> None:
        """Zeroed gradients where they belong, wherever they were."""
        if self.has_grads:
            self.grads.zero_()
            self.show_own_grads()

    def show_own_grads(self) -> None:
        """Have everybody see the gradient buffer again."""
        if self.has_grads:
            self._use(self.message)

    def lend(self, gradient: Tensor) -> None:
        """Have the optimizer see ``gradient`` (n,) until :meth:`take_back`."""
        self.flat.grad = gradient
        if self.by_tensor:
            for tensor, view in zip(self.tensors, self.views(gradient), strict=True):
                tensor.grad = view

    def take_back(self) -> None:
        """Have the optimizer see the gradient buffer again."""
        if self.by_tensor:
            self._use(self.message)
        else:
            self.flat.grad = self.grads

    def show(self, memory: Tensor) -> None:
        """Have the optimizer see ``memory`` (n,) as the parameters; :attr:`params` ends it."""
        self.flat.data = memory
        if self.by_tensor:
            for tensor, view in zip(self.tensors, self.views(memory), strict=True):
                tensor.data = view

    def forget_grads(self) -> None:
        """Have no gradient buffer: ``p.grad`` is None until backward() makes one, and the caller takes it away."""
        for tensor in self.tensors:
            tensor.grad = None
        self.flat.grad = None
        self._spare.clear()
        self._views.clear()
        self.has_grads = False
        self.message = self.memory.new_zeros(1)  # a count, and no gradient

    def reset_grads(self) -> None:
        """See :meth:`Replica.reset_grads`."""
        self.use_messages([self._empty_message()])

    def _empty_message(self) -> Tensor:
        return self.memory.new_zeros(self.memory.numel() + 1)

    def _use(self, message: Tensor) -> None:
        self.message = message
        key = message.data_ptr()
        views = self._views[key] if key in self._views else self._views.setdefault(key, self.views(message))
        for tensor, view in zip(self.tensors, views, strict=True):
            tensor.grad = view
        self._grad_pointers = [*map(_pointer, views)]
        self._clean_version = message._version
        self.flat.grad = self.grads


class Replica:
    """One rank's copy of a model, laid flat.

    Args:
        model: any module; its parameters and float buffers become views of the replica's vectors.

    Raises:
        UsageError: the model has nothing to train.
    """

    def __init__(self, model: nn.Module) -> None:
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not trainable:
            raise UsageError(f"{type(model).__name__} has no parameter that requires a gradient: nothing to train")
        buffers = [(name, b) for name, b in model.named_buffers() if b.is_floating_point()]
        self.model = model
        self.pairs = [Pair(group) for group in _by_dtype(trainable)]
        self.buffers = [Flat(group) for group in _by_dtype(buffers)]
        self._constants = [name for name, p in model.named_parameters() if not p.requires_grad]
        self._constants += [name for name, b in model.named_buffers() if not b.is_floating_point()]
        self._hooks: list[RemovableHandle] = []
        self._module_hooks: list[RemovableHandle] = []
        self.dtype = reduce(torch.promote_types, (flat.memory.dtype for flat in (*self.pairs, *self.buffers)))

    @property
    def constants(self) -> dict[str, Tensor]:
        """By name, what is on no vector, as the model has it now: frozen parameters and buffers that are not float."""
        parameters = self.model.named_parameters(remove_duplicate=False)
        tensors = dict(parameters) | dict(self.model.named_buffers(remove_duplicate=False))
        return {name: tensors[name].data for name in self._constants}

    def load_constants(self, constants: Mapping[str, Tensor]) -> None:
        """Take on the values of another replica's ``constants``."""
        for name, tensor in self.constants.items():
            tensor.copy_(constants[name])

    @property
    def flat(self) -> nn.Parameter:
        """(n,) what the optimizer gets when all parameters share a dtype; else see :meth:`parameters`."""
        return self._only().flat

    @property
    def params(self) -> Tensor:
        """(n,) the parameters of the only pair."""
        return self._only().params

    @property
    def grads(self) -> Tensor:
        """(n,) the gradient of the only pair."""
        return self._only().grads

    @property
    def spans(self) -> list[Span]:
        """Where each tensor of the only pair lies."""
        return self._only().spans

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer gets: ``torch.optim.SGD(replica.parameters(), lr, fused=True)``."""
        return [pair.flat for pair in self.pairs]

    def watch_grads(self, ready: Callable[[Tensor], None]) -> None:
        """Have ``ready(p)`` called inside backward() whenever a parameter's gradient is complete, once per backward().

        It takes the place of an earlier ``ready``.
        """
        for hook in self._hooks:
            hook.remove()
        tensors = (tensor for pair in self.pairs for tensor in pair.tensors)
        self._hooks = [
            tensor.register_post_accumulate_grad_hook(ready)  # type: ignore[no-untyped-call]
            for tensor in tensors
        ]

    def watch_modules(
        self, modules: Iterable[nn.Module], before: Callable[..., None], after: Callable[..., object]
    ) -> None:
        """Have ``before(module, args)`` and ``after(module, args, kwargs, output)`` called around each forward().

        What ``after`` returns, unless None, is the module's output. It is called even if forward() raises, with an
        ``output`` of None. These two take the place of an earlier two.
        """
        for hook in self._module_hooks:
            hook.remove()
        self._module_hooks = []
        for module in modules:
            self._module_hooks.append(module.register_forward_pre_hook(before))
            self._module_hooks.append(module.register_forward_hook(after, with_kwargs=True, always_call=True))

    def adopt_strays(self) -> None:
        """Bring home every gradient that left the flat buffers."""
        for pair in self.pairs:
            pair.adopt_strays()
            pair.adopt_flat_grad()

    def reset_grads(self) -> None:
        """Zeroed gradients in fresh memory: what is still in flight after a death may yet write into the old."""
        for pair in self.pairs:
            pair.reset_grads()

    def zero_grads(self) -> None:
        """Zero the gradients and the counts behind them."""
        for pair in self.pairs:
            pair.clear()

    def renew_grads(self) -> list[Tensor]:
        """:meth:`Pair.renew_grads` of every pair: messages [(n_i + 1,), ...]."""
        return [pair.renew_grads() for pair in self.pairs]

    def recycle(self, messages: Iterable[Tensor]) -> None:
        """Take back what :meth:`renew_grads` gave away."""
        for pair, message in zip(self.pairs, messages, strict=True):
            pair.recycle(message)

    def apply_mean(self, optimizer: torch.optim.Optimizer, messages: Sequence[Tensor]) -> None:
        """One optimizer step with the mean gradient: the messages' sums over the count that travelled with them."""
        count = messages[0][-1].float()
        for pair, message in zip(self.pairs, messages, strict=True):
            pair.lend(message[:-1])
        step_with_mean(optimizer, [pair.flat for pair in self.pairs], count)
        for pair in self.pairs:
            pair.take_back()

    def vector(self) -> Tensor:
        """(n + b,) a copy of the parameters, then the float buffers, in the widest dtype (so nothing is rounded)."""
        return self.join([flat.memory for flat in (*self.pairs, *self.buffers)])

    def join(self, parts: Iterable[Tensor]) -> Tensor:
        """One vector in the widest dtype out of one part per pair, then one per buffer vector."""
        return torch.cat([part.detach().to(self.dtype) for part in parts])

    def load_vector(self, vector: Tensor) -> None:
        """Take on the values of a :meth:`vector` (n + b,)."""
        flats = (*self.pairs, *self.buffers)
        sizes = [flat.memory.numel() for flat in flats]
        if vector.shape != (sum(sizes),):
            raise UsageError(f"a vector of shape {tuple(vector.shape)} does not fit this model: ({sum(sizes)},) does")
        with torch.no_grad():
            for flat, part in zip(flats, torch.split(vector, sizes), strict=True):
                flat.memory.copy_(part)

    def _only(self) -> Pair:
        if len(self.pairs) > 1:
            dtypes = ", ".join(str(pair.memory.dtype) for pair in self.pairs)
            raise UsageError(f"the model has parameters of several dtypes ({dtypes}): use replica.pairs")
        return self.pairs[0]


def step_with_mean(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], count: Tensor) -> None:
    """One step of ``optimizer`` with the gradients of ``parameters`` over ``count``, a scalar of float32."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale = count  # type: ignore[attr-defined]  # a fused step divides as it reads: one pass over the memory less
        optimizer.step()
        del optimizer.grad_scale  # type: ignore[attr-defined]
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(count)
    optimizer.step()


def dense(gradient: Tensor) -> Tensor:
    """``gradient`` itself, or with its zeros if it is sparse, as of ``nn.Embedding(sparse=True)``."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def fill(place: Tensor, tensor: Tensor, name: str) -> None:
    """Copy what a script has put in the place of a replica's tensor back into ``place``.

    Raises:
        UsageError: it has another shape, dtype or device.
    """
    if (tensor.shape, tensor.dtype, tensor.device) != (place.shape, place.dtype, place.device):
        raise UsageError(
            f"{name} is {_kind(tensor)} now, and was {_kind(place)} when Replica(model) was made: "
            "give the model its final shapes, dtype and device before Replica(model)"
        )
    place.copy_(tensor.detach())


def _kind(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype} {tuple(tensor.shape)} on {tensor.device}"


def _grads_lie_at(pointers: list[int], tensors: Iterable[Tensor]) -> bool:
    try:
        return [*map(_pointer, map(_grad, tensors))] == pointers
    except (TypeError, RuntimeError):  # one has no gradient, or a sparse one
        return False


def _by_dtype(named: Iterable[tuple[str, T]]) -> list[list[tuple[str, T]]]:
    """Groups of one dtype each, widest dtype first, order within a group kept."""
    groups: dict[torch.dtype, list[tuple[str, T]]] = {}
    for name, tensor in named:
        groups.setdefault(tensor.dtype, []).append((name, tensor))
    return [groups[dtype] for dtype in sorted(groups, key=lambda dtype: -dtype.itemsize)]
