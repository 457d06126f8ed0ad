"""Interp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import resize

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple[int, int]


@register
class Interp(Layer):
    """Bilinear resizing that keeps the corner values in the corners (interp_layer.cpp, interp.cpp of hszhao/PSPNet).

    First -pad_beg rows and columns at the start and -pad_end at the end are cut off. Of what remains, n, the top has:
    shrink_factor s alone: (n - 1) / s + 1, rounded down; zoom_factor z alone: n + (n - 1)(z - 1); else height and width
    if both are stated; else shrink_factor and zoom_factor, one after the other. Top cell i takes its value from place
    i (n - 1) / (out - 1), from place 0 when out is 1.
    """

    TYPE = "Interp"
    FROM_ONNX = True
    DIALECTS = ("pspnet",)
    PARAM = "interp_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        for name in ("pad_beg", "pad_end"):
            pad = getattr(self.p, name)
            what = f"{name} {pad} is above 0; only cutting off is known"
            self.check(pad <= 0, what, field=f"interp_param.{name}", remedy="use 0, or a negative number to cut off")
        for name in ("shrink_factor", "zoom_factor"):
            factor = getattr(self.p, name)
            what = f"{name} {factor} must be at least 1"
            self.check(factor >= 1, what, field=f"interp_param.{name}", remedy="correct it")
        sized = self.has("height") and self.has("width")
        what = "no size: state shrink_factor, zoom_factor, or height and width"
        known = sized or self.has("shrink_factor") or self.has("zoom_factor")
        self.check(known, what, field="interp_param", remedy="state one")
        self.fixed = sized and self.has("shrink_factor") == self.has("zoom_factor")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        what = f"the bottom has shape {bottoms[0]}; it takes four axes"
        self.check(len(bottoms[0]) == 4, what, field="bottom[0]", remedy="reshape it to (N, C, H, W)")
        height, width = (size + self.p.pad_beg + self.p.pad_end for size in bottoms[0][2:])
        what = f"nothing is left of a bottom of shape {bottoms[0]}"
        left = min(height, width) > 0
        self.check(left, what, field="interp_param.pad_beg", remedy="cut off less, or feed a larger bottom")
        sizes = (self.p.height, self.p.width) if self.fixed else (self._scaled(height), self._scaled(width))
        what = f"height {sizes[0]} and width {sizes[1]} must be > 0"
        self.check(min(sizes) > 0, what, field="interp_param.height", remedy="correct them")
        return [(*bottoms[0][:2], *sizes)]

    def _scaled(self, size: int) -> int:
        """Shrunk, then zoomed; factors that are not stated are 1."""
        shrunk = (size - 1) // int(self.p.shrink_factor) + 1
        return shrunk + (shrunk - 1) * (int(self.p.zoom_factor) - 1)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        from torch.nn.functional import interpolate

        size = self.reshape(bottoms)[0][2:]
        rows, columns = (slice(-self.p.pad_beg, n + self.p.pad_end) for n in bottoms[0].shape[2:])
        return [interpolate(bottoms[0][:, :, rows, columns], size, mode="bilinear", align_corners=True)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        x, size = bottoms[0], self.bottom_shapes[0][2:]
        if self.p.pad_beg or self.p.pad_end:
            starts, ends = [-self.p.pad_beg] * 2, [n + self.p.pad_end for n in size]
            x = g.op("Slice", [x, *(g.constant(np.array(v, np.int64)) for v in (starts, ends, [2, 3]))])[0]
        modes = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
        resize(g, x, self.top_shapes_built[0][2:], tops, **modes)
