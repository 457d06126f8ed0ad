"""Transpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Transpose(Layer):
    """Axis i of the top is axis dim[i] of the bottom; every axis must be named (transpose_layer.cpp of caffe_ocr).

    Source: senlinuc/caffe_ocr, tianzhi0549/CTPN.
    """

    TYPE = "Transpose"
    DIALECTS = ("caffe-ocr",)
    PARAM = "transpose_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.order = list(self.p.dim)
        rank = len(bottoms[0])
        what = f"dim {self.order} does not name each of the bottom's {rank} axes once"
        known = rank > 0 and sorted(self.order) == list(range(rank))
        field = "transpose_param.dim[0]" if self.order else "transpose_param"
        self.check(known, what, field=field, remedy=f"state {rank} dim, 0 to {rank - 1} in the top's order")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [tuple(bottoms[0][axis] for axis in self.order)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [bottoms[0].permute(self.order).contiguous()]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        g.op("Transpose", bottoms, tops, perm=self.order)
