"""Gradients that are not those of the values."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@cache
def nan_at_zero() -> Callable[[Tensor], Tensor]:
    """A function x: the same values, with a gradient that is NaN where x is 0, as after a division 0 / 0."""
    import torch

    class NanAtZero(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            (x,) = ctx.saved_tensors
            return grad.masked_fill(x == 0, torch.nan)

    return NanAtZero.apply  # type: ignore[no-any-return]


@cache
def straight_through() -> Callable[[Tensor, Tensor], Tensor]:
    """A function (x, y): the values of y, with a gradient for x alone, as if they were x's. Shapes are equal."""
    import torch

    class StraightThrough(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, _x: Tensor, y: Tensor) -> Tensor:
            return y.detach().clone()

        @staticmethod
        def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
            return grad, None

    return StraightThrough.apply  # type: ignore[no-any-return]
