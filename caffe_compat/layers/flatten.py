"""Flatten."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.onnx_forms import reshape

if TYPE_CHECKING:
    from torch import Tensor


@register
class Flatten(Layer):
    """Axes `axis` to `end_axis` (1 and -1 by default) become one (flatten_layer.cpp).

    axis = end_axis + 1 inserts an axis of size 1 there. Caffe refuses to do it in place.
    dec2013: the top is (N, C H W, 1, 1).
    """

    TYPE = "Flatten"
    HEEDLESS = True
    FROM_ONNX = True
    V1 = ("FLATTEN",)
    V0 = ("flatten",)
    PARAM = "flatten_param"
    PROFILES = ("bvlc", "dec2013")

    def setup(self, bottoms: Sequence[Shape]) -> None:
        rank = len(bottoms[0])
        self.first = self.axis(self.p.axis, rank, "flatten_param.axis")
        last = self.axis(self.p.end_axis, rank, "flatten_param.end_axis")
        what = f"axis {self.first} lies behind end_axis {last}"
        self.check(self.first <= last + 1, what, field="flatten_param.axis", remedy="let axis <= end_axis")
        self.end = last + 1

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        bottom = bottoms[0]
        one = prod(bottom[self.first : self.end])
        legacy = (1, 1) if self.context.profile == "dec2013" else ()
        return [(*bottom[: self.first], one, *bottom[self.end :], *legacy)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [bottoms[0].reshape(self.reshape(bottoms)[0])]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        x, last = bottoms[0], self.end - 1
        if last < self.first:
            return f"{x}.unsqueeze({self.first})"
        whole = self.end == len(self.bottom_shapes[0])
        return f"{x}.flatten({self.first})" if whole else f"{x}.flatten({self.first}, {last})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if (self.first, self.end) == (1, len(self.bottom_shapes[0])) and self.context.profile == "bvlc":
            g.op("Flatten", bottoms, tops, axis=1)
            return
        after = self.top_shapes_built[0][self.first + 1 :]
        one = -1 if self.first < self.end else 1
        reshape(g, bottoms[0], (*(0,) * self.first, one, *after), tops)
