"""Normalize."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.layers.legacy_axes import legacy_sizes
from caffe_compat.onnx_forms import append_axes, reduce
from caffe_compat.python_forms import call, number, with_axes
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class Normalize(Layer):
    """y = s x / n with n = sqrt(sum of x^2 + eps), the sum over C, H and W, or over C without `across_spatial`.

    s is learned: one number, or one for each channel without `channel_shared`. The gradient for x is then not the true
    one: s (g - x (x . g) / n^2) / n, which leaves s out of the projection.
    Source: normalize_layer.cpp of weiliu89/caffe, branch ssd.
    """

    TYPE = "Normalize"
    DIALECTS = ("ssd",)
    PARAM = "norm_param"
    BLOBS = ("weight",)
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        legacy_sizes(self, bottoms)
        rank = len(bottoms[0])
        what = f"the bottom has {rank} axes; at least 2 are needed"
        self.check(rank >= 2, what, field="bottom[0]", remedy="give it a blob with channels")
        self.axes = list(range(1, rank)) if self.p.across_spatial else [1]
        self.eps: float = self.p.eps

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [() if self.p.channel_shared else (bottoms[0][1],)]

    def fillers(self) -> list[pb.FillerParameter]:
        return [self.p.scale_filler if self.has("scale_filler") else pb.FillerParameter(type="constant", value=1)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x, scale = bottoms[0], blobs[0]
        if self.p.channel_shared:
            return [x / self.norm(x) * scale]
        return [_scaled_channels()(x, scale.view(-1, *[1] * (x.dim() - 2)), self.norm(x.detach()), self.axes)]

    def norm(self, x: Tensor) -> Tensor:
        squares = x.square().sum(self.axes, keepdim=True)
        return squares.add(self.eps).sqrt()

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        shape = () if self.p.channel_shared else (self.bottom_shapes[0][1],)
        blobs = w.module(call(w.part("Blobs"), weight=str(shape)))
        scale = with_axes(f"{blobs}.weight", 0 if self.p.channel_shared else len(self.bottom_shapes[0]) - 2)
        return call(w.part("normalize"), bottoms[0], scale, dim=str(tuple(self.axes)), eps=number(self.eps))

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        eps = g.constant(np.array(self.eps, np.float32))
        squares = reduce(g, "ReduceSumSquare", bottoms[0], self.axes, True)
        norm = g.op("Sqrt", g.op("Add", [*squares, eps]))
        shape = self.bottom_shapes[0]
        scale = blobs[0] if self.p.channel_shared else append_axes(g, blobs[0], shape[1:2], len(shape) - 2)
        g.op("Mul", [*g.op("Div", [bottoms[0], *norm]), scale], tops)


@cache
def _scaled_channels() -> Callable[[Tensor, Tensor, Tensor, list[int]], Tensor]:
    """A function (x, s, n, axes): s x / n, where n is the norm of x over the axes, with the fork's gradients."""
    import torch
    from torch.autograd.function import once_differentiable

    class ScaledChannels(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, scale: Tensor, norm: Tensor, axes: list[int]) -> Tensor:
            unit = x / norm
            ctx.save_for_backward(unit, scale, norm)
            ctx.axes = axes
            return unit * scale

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
            unit, scale, norm = ctx.saved_tensors
            along = grad * unit
            bottom = (grad - unit * along.sum(ctx.axes, keepdim=True)) / norm * scale
            return bottom, along.sum_to_size(scale.shape), None, None

    return ScaledChannels.apply  # type: ignore[no-any-return]
