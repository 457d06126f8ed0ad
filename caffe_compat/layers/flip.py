"""Flip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Flip(Layer):
    """The images mirrored, columns with flip_width, rows with flip_height (happynear/caffe-windows, flip_layer.cpp)."""

    TYPE = "Flip"
    DIALECTS = ("caffe-windows",)
    PARAM = "flip_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = f"the bottom has shape {bottoms[0]}; four axes are needed"
        self.check(len(bottoms[0]) == 4, what, field="bottom[0]", remedy="reshape it to (N, C, H, W)")
        self.axes = [axis for axis, flips in ((2, self.p.flip_height), (3, self.p.flip_width)) if flips]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [bottoms[0].flip(self.axes)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if not self.axes:
            g.op("Identity", bottoms, tops)
            return
        ends = np.full(len(self.axes), np.iinfo(np.int64).min)
        where = (np.full_like(ends, -1), ends, np.array(self.axes, np.int64), np.full_like(ends, -1))
        g.op("Slice", [*bottoms, *map(g.constant, where)], tops)
