"""Permute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Permute(Layer):
    """Axis i of the top is axis order[i] of the bottom; axes that `order` leaves out follow in their own order.

    Source: permute_layer.cpp of weiliu89/caffe, branch ssd.
    """

    TYPE = "Permute"
    FROM_ONNX = True
    DIALECTS = ("ssd",)
    PARAM = "permute_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        given, rank = list(self.p.order), len(bottoms[0])
        for position, axis in enumerate(given):
            field = f"permute_param.order[{position}]"
            what = f"order names axis {axis}; the bottom has {rank} axes"
            self.check(axis < rank, what, field=field, remedy=f"use 0 to {rank - 1}")
            what = f"order names axis {axis} twice"
            self.check(axis not in given[:position], what, field=field, remedy="name each axis once")
        self.order = [*given, *(axis for axis in range(rank) if axis not in given)]

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [tuple(bottoms[0][axis] for axis in self.order)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [bottoms[0].permute(self.order)]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        return f"{bottoms[0]}.permute({', '.join(map(str, self.order))})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        g.op("Transpose", bottoms, tops, perm=self.order)
