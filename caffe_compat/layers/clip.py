"""Clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.python_forms import number

if TYPE_CHECKING:
    from torch import Tensor


@register
class Clip(Layer):
    """y = max(min, min(x, max)); the gradient passes where min <= x <= max (clip_layer.cpp).

    When min > max every y is min. In place, Caffe's backward pass takes y for x and so always passes the gradient;
    here the gradient is the true one.
    """

    TYPE = "Clip"
    FROM_ONNX = True
    PARAM = "clip_param"
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.low, self.high = self.p.min, self.p.max

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        if self.low > self.high:  # torch would give max
            return [bottoms[0].clamp(max=self.high).clamp(min=self.low)]
        return [bottoms[0].clamp(self.low, self.high)]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        low, high = number(self.low), number(self.high)
        if self.low > self.high:
            return f"{bottoms[0]}.clamp(max={high}).clamp(min={low})"
        return f"{bottoms[0]}.clamp({low}, {high})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        low, high = (g.constant(np.array(limit, np.float32)) for limit in (self.low, self.high))
        if self.low > self.high:
            g.op("Max", [*g.op("Min", [bottoms[0], high]), low], tops)
        else:
            g.op("Clip", [bottoms[0], low, high], tops)
