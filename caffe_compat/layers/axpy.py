"""Axpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import reshape

if TYPE_CHECKING:
    from torch import Tensor


@register
class Axpy(Layer):
    """y = a x + y0 for each item and channel (axpy_layer.cpp of hujie-frank/SENet).

    Bottoms: a (N, C) or (N, C, 1, 1), x and y0 of one shape (N, C, ...).
    """

    TYPE = "Axpy"
    DIALECTS = ("senet",)
    BOTTOMS = (3, 3)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        a, x, y = bottoms
        what = f"factors of shape {a} for x of shape {x}"
        fine = len(x) >= 2 and a in (x[:2], (*x[:2], 1, 1))
        self.check(fine, what, field="bottom[0]", remedy="feed one factor for each item and channel")
        what = f"x of shape {x} and y of shape {y}"
        self.check(x == y, what, field="bottom[2]", remedy="make both the same size")
        return [x]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        a, x, y = bottoms
        return [torch.addcmul(y, a.reshape(*x.shape[:2], *[1] * (x.dim() - 2)), x)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        factor, wanted = bottoms[0], len(self.bottom_shapes[1])
        if len(self.bottom_shapes[0]) != wanted:
            factor = reshape(g, factor, [0, 0] + [1] * (wanted - 2))[0]
        g.op("Add", [*g.op("Mul", [factor, bottoms[1]]), bottoms[2]], tops)
