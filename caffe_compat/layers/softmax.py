"""Softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.onnx_forms import reshape

if TYPE_CHECKING:
    from torch import Tensor


@register
class Softmax(Layer):
    """y = exp(x) / sum(exp(x)), the sum over `axis` (1 by default) at each place of the others (softmax_layer.cpp).

    dec2013: the sum is over all channels, rows and columns of an item.
    """

    TYPE = "Softmax"
    HEEDLESS = True
    FROM_ONNX = True
    V1 = ("SOFTMAX",)
    V0 = ("softmax",)
    PARAM = "softmax_param"
    PROFILES = ("bvlc", "dec2013")
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.over_item = self.context.profile == "dec2013"
        self.dim = 1 if self.over_item else self.axis(self.p.axis, len(bottoms[0]), "softmax_param.axis")

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        return [x.flatten(1).softmax(1).view(x.shape) if self.over_item else x.softmax(self.dim)]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        return f"F.softmax({bottoms[0]}, dim={self.dim})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if not self.over_item:
            g.op("Softmax", bottoms, tops, axis=self.dim)
            return
        probabilities = g.op("Softmax", reshape(g, bottoms[0], (0, -1)), axis=1)
        reshape(g, probabilities[0], (0, *self.bottom_shapes[0][1:]), tops)
