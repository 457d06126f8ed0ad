"""Normalize without learned scales, as two forks have it; normalize.py has SSD's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.layers.legacy_axes import legacy_sizes
from caffe_compat.onnx_forms import append_axes, reduce

if TYPE_CHECKING:
    from torch import Tensor


@register
class NormalizeItems(Layer):
    """y = x / |x| for each item, |x| = sqrt(sum of all its x^2) (normalize_layer.cpp of yjxiong/caffe)."""

    TYPE = "Normalize"
    DIALECTS = ("yjxiong",)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [legacy_sizes(self, bottoms)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0].reshape(self.reshape(bottoms)[0])
        return [x / x.square().sum((1, 2, 3), keepdim=True).sqrt()]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        shape = self.bottom_shapes[0]
        x = append_axes(g, bottoms[0], shape, 4 - len(shape))
        total = reduce(g, "ReduceSum", g.op("Mul", [x, x])[0], [1, 2, 3], True)
        g.op("Div", [x, *g.op("Sqrt", total)], tops)


@register
class NormalizeChannels(Layer):
    """y = x / n at each place, n = sqrt(sum of x^2 over the channels + 1e-12); normalize_type L1: sum of |x| + 1e-6.

    A second top (N, 1, H, W) holds n; a gradient flows back from it with `bp_norm` alone. The gradient of x is
    (g - y (g . y)) / n, of L1 (g - sign(x) (g . y)) / n; with `fix_gradient` it is not divided by n.
    Source: normalize_layer.cu of happynear/caffe-windows. (Its CPU code adds 1e-6 and ignores fix_gradient.)
    """

    TYPE = "Normalize"
    DIALECTS = ("caffe-windows",)
    PARAM = "normalize_param"
    FORK_FIELDS = ("softmax_param.normalize_type",)  # stands there by mistake in published nets, and changes nothing
    TOPS = (1, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = f'normalize_type "{self.p.normalize_type}"'
        known = self.p.normalize_type in ("L1", "L2")
        self.check(known, what, field="normalize_param.normalize_type", remedy="use L2 or L1")
        self.squared = self.p.normalize_type == "L2"

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        n, c, h, w = legacy_sizes(self, bottoms)
        shapes: list[Shape] = [(n, c, h, w), (n, 1, h, w)]
        return shapes[: self.tops]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0].reshape(self.reshape(bottoms)[0])
        backward = self.p.bp_norm and self.tops == 2
        tops = _normalized()(x, self.squared, self.p.fix_gradient, backward)
        return list(tops[: self.tops])

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        shape = self.bottom_shapes[0]
        x = append_axes(g, bottoms[0], shape, 4 - len(shape))
        values = g.op("Mul", [x, x]) if self.squared else g.op("Abs", [x])
        least = g.constant(np.array(1e-12 if self.squared else 1e-6, np.float32))
        norm = g.op("Add", [*reduce(g, "ReduceSum", values[0], [1], True), least])
        norm = g.op("Sqrt", norm) if self.squared else norm
        g.op("Div", [x, *norm], tops[:1])
        for top in tops[1:]:
            g.op("Identity", norm, [top])


@cache
def _normalized() -> Callable[[Tensor, bool, bool, bool], tuple[Tensor, Tensor]]:
    """A function (x, L2 or L1, fix_gradient, bp_norm): y and n, with the fork's gradient."""
    import torch
    from torch.autograd.function import once_differentiable

    class Run(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, squared: bool, fixed: bool, through: bool) -> tuple[Tensor, Tensor]:
            total = (x.square() if squared else x.abs()).sum(1, keepdim=True)
            norm = (total + 1e-12).sqrt() if squared else total + 1e-6
            y = x / norm
            ctx.save_for_backward(y, norm, y if squared else x.sign())
            ctx.fixed, ctx.through = fixed, through
            return y, norm

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad: Tensor, norm_grad: Tensor) -> tuple[Tensor, None, None, None]:
            y, norm, direction = ctx.saved_tensors
            inner = grad - direction * (grad * y).sum(1, keepdim=True)
            inner = inner if ctx.fixed else inner / norm
            return inner + direction * norm_grad if ctx.through else inner, None, None, None

    return Run.apply  # type: ignore[no-any-return]
