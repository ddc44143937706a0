"""Gradients of a few rows of a weight, without the rest of it: less memory, and less to compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from hpcasync.replica import Replica


class RowGradients:
    """Has backward() compute the gradients of chosen rows of the weights of linear layers and 2-d convolutions.

        linear, rows R of W (out, in), outputs Y = X W^T:   dL/dW_R = (dL/dY)_R^T X

    While such a layer runs forward, its weight counts as a constant, so autograd neither keeps what its gradient needs
    nor computes it; the layer's output passes through an identity whose backward() computes the rows. What else the
    loss makes of a weight (a penalty, say) has its gradient in ``weight.grad`` as always. Other tensors are as always.
    """

    def __init__(self, replica: Replica) -> None:
        trained = {tensor for pair in replica.pairs for tensor in pair.tensors}
        modules = [module for module in replica.model.modules() if _has_rows(module) and module.weight in trained]
        self._modules = set(modules)
        self._chosen: Mapping[Tensor, tuple[slice, nn.Parameter]] | None = None
        replica.watch_modules(modules, self._before, self._after)

    def compute_only(self, chosen: Mapping[Tensor, tuple[slice, nn.Parameter]]) -> None:
        """From the next forward() on: of each weight only these rows, added into the parameter's ``grad``."""
        self._chosen = chosen

    def compute_all(self) -> None:
        """From the next forward() on: all gradients, as always."""
        self._chosen = None

    def __deepcopy__(self, memo: Any) -> RowGradients:
        return self  # a copy of the model has hooks that lead here, and is left alone

    def _before(self, module: nn.Module, *_: Any) -> None:
        if self._chosen is not None and module in self._modules and torch.is_grad_enabled():
            assert isinstance(module.weight, nn.Parameter)
            rows, _piece = self._chosen.get(module.weight, (slice(0), None))
            if rows != slice(0, module.weight.shape[0]):
                module.weight.requires_grad_(False)

    def _after(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Any) -> Any:
        """``output`` is None when forward() has raised."""
        if module not in self._modules:
            return None
        assert isinstance(module.weight, nn.Parameter)
        if module.weight.requires_grad:
            return None
        module.weight.requires_grad_(True)
        assert self._chosen is not None
        chosen = self._chosen.get(module.weight)
        if output is None or (chosen is None and output.requires_grad):
            return None
        rows, piece = chosen or (slice(0), module.weight[:0].detach().requires_grad_())
        return _Rows.apply(output, args[0] if args else kwargs["input"], piece, rows, module)  # type: ignore[no-untyped-call]


class _Rows(torch.autograd.Function):
    """A layer's output as it is. backward() computes the gradient of ``piece``, rows ``rows`` of the layer's weight."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, inputs: Tensor, piece: Tensor, rows: slice, module: nn.Module) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.rows, ctx.module, ctx.shape, ctx.dtype = rows, module, piece.shape, piece.dtype
        return output.clone()  # a view would forbid operations in place on it

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (inputs,) = gradients, ctx.saved_tensors
        if ctx.shape[0] == 0:
            return gradient, None, gradient.new_zeros(ctx.shape, dtype=ctx.dtype), None, None
        if isinstance(ctx.module, nn.Linear):
            chosen = gradient[..., ctx.rows].reshape(-1, ctx.shape[0])
            rows = chosen.to(ctx.dtype).T @ inputs.reshape(-1, ctx.shape[1]).to(ctx.dtype)
        else:
            images = inputs if inputs.dim() == 4 else inputs[None]
            chosen = gradient if gradient.dim() == 4 else gradient[None]
            rows = conv2d_weight(  # type: ignore[no-untyped-call]
                images.to(ctx.dtype),
                ctx.shape,
                chosen[:, ctx.rows].to(ctx.dtype).contiguous(),
                ctx.module.stride,
                ctx.module.padding,
                ctx.module.dilation,
            )
        return gradient, None, rows, None, None


def _has_rows(module: nn.Module) -> bool:
    """Is it one of the layers whose rows' gradients can be computed apart? (A subclass may do anything.)"""
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear
