"""Reverse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Reverse(Layer):
    """The bottom with the order along `axis` (0 by default) turned around (reverse_layer.cpp of senlinuc/caffe_ocr)."""

    TYPE = "Reverse"
    DIALECTS = ("caffe-ocr",)
    PARAM = "reverse_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        rank = len(bottoms[0])
        what = f"axis {self.p.axis} for a bottom with {rank} axes"
        known = 0 <= self.p.axis < rank
        self.check(known, what, field="reverse_param.axis", remedy=f"use 0 to {rank - 1}")

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [bottoms[0].flip(self.p.axis)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        last, before_first, step = -1, -(2**31), -1
        values = (g.constant(np.array([v], np.int64)) for v in (last, before_first, self.p.axis, step))
        g.op("Slice", [bottoms[0], *values], tops)
