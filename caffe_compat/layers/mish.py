"""Mish."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from caffe_compat.layers.base import Layer, OnnxWriter, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Mish(Layer):
    """y = x tanh(log(1 + exp(x))) (mish_layer.cu of ChenYingpeng/caffe-yolov3; also in synopsys-caffe).

    The gradient is the derivative at y instead of x, as both forks have it.
    """

    TYPE = "Mish"
    DIALECTS = ("synopsys", "caffe-yolov3")
    INPLACE = True

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [_mish()(bottoms[0])]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if g.opset >= 18:
            g.op("Mish", bottoms, tops)
        else:
            g.op("Mul", [bottoms[0], *g.op("Tanh", g.op("Softplus", bottoms))], tops)


@cache
def _mish() -> Callable[[Tensor], Tensor]:
    """Mish with the forks' gradient."""
    import torch
    from torch.autograd.function import once_differentiable
    from torch.nn.functional import mish, softplus

    class Run(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            y = mish(x)
            ctx.save_for_backward(y)
            return y

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            y: Tensor = ctx.saved_tensors[0]
            gate = softplus(y).tanh()
            return grad * (gate + y * (1 - gate * gate) * y.sigmoid())

    return Run.apply  # type: ignore[no-any-return]
