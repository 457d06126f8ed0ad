"""GRN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.layers.legacy_axes import legacy_sizes
from caffe_compat.layers.straight_through import straight_through
from caffe_compat.onnx_forms import reduce

if TYPE_CHECKING:
    from torch import Tensor


@register
class GRN(Layer):
    """y = x / sqrt(sum of x^2 over the channels + bias); with dummy_backward the gradient passes as it is.

    Source: grn_layer.cpp of openvinotoolkit/training_toolbox_caffe.
    """

    TYPE = "GRN"
    DIALECTS = ("openvino",)
    PARAM = "grn_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        legacy_sizes(self, bottoms)
        what = f"bias {self.p.bias:g} is negative"
        self.check(self.p.bias >= 0, what, field="grn_param.bias", remedy="use 0 or more")

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        squares = x.square()
        total = squares.sum(1, keepdim=True) if x.dim() > 1 else squares
        y = x / total.add(self.p.bias).sqrt()
        return [straight_through()(x, y) if self.p.dummy_backward else y]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        channels = [1] if len(self.bottom_shapes[0]) > 1 else []
        squares = g.op("Mul", [bottoms[0], bottoms[0]])
        total = reduce(g, "ReduceSum", squares[0], channels, True) if channels else squares
        norm = g.op("Sqrt", g.op("Add", [*total, g.constant(np.array(self.p.bias, np.float32))]))
        g.op("Div", [bottoms[0], *norm], tops)
