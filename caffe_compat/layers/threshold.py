"""Threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import FLOAT

if TYPE_CHECKING:
    from torch import Tensor


@register
class Threshold(Layer):
    """y = 1 where x > threshold, else 0; there is no backward pass (threshold_layer.cpp)."""

    TYPE = "Threshold"
    FROM_ONNX = True
    V1 = ("THRESHOLD",)
    PARAM = "threshold_param"
    INPLACE = True
    BACKWARD = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.threshold = self.p.threshold

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [(bottoms[0] > self.threshold).to(bottoms[0].dtype)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        above = g.op("Greater", [*bottoms, g.constant(np.array(self.threshold, np.float32))])
        g.op("Cast", above, tops, to=FLOAT)
