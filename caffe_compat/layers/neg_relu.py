"""NegReLU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class NegReLU(Layer):
    """y = x where x < 0, else negative_slope x; the gradient at 0 is negative_slope.

    Source: neg_relu_layer.cpp of lmb-freiburg/flownet2.
    """

    TYPE = "NegReLU"
    DIALECTS = ("flownet2",)
    PARAM = "relu_param"
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.slope = self.p.negative_slope

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        return [x.where(x < 0, x * self.slope)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        zero, slope = (g.constant(np.array(value, np.float32)) for value in (0, self.slope))
        negative, scaled = g.op("Less", [bottoms[0], zero]), g.op("Mul", [bottoms[0], slope])
        g.op("Where", [*negative, bottoms[0], *scaled], tops)
