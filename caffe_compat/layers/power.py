"""Power."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.layers.straight_through import nan_at_zero
from caffe_compat.python_forms import number

if TYPE_CHECKING:
    from torch import Tensor


@register
class Power(Layer):
    """y = (shift + scale x)^power (power_layer.cpp).

    With scale 0 or power 0 the bottom is not looked at: y is shift^power, or 1 for power 0, and the gradient 0.
    Caffe divides y by (shift + scale x) in its backward pass, unless power is 1 or 2, so the gradient is NaN where both
    are 0. In place it takes y for x there; here the gradient is the true one.
    """

    TYPE = "Power"
    FROM_ONNX = True
    V1 = ("POWER",)
    PARAM = "power_param"
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.power, self.scale, self.shift = self.p.power, self.p.scale, self.p.shift
        self.divides = self.power > 0 and self.power not in (1, 2)
        self.fixed = self.power * self.scale == 0
        with np.errstate(all="ignore"):
            self.value = float(np.power(np.float32(self.shift), np.float32(self.power)))

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        x = bottoms[0]
        if self.fixed:
            return [x.masked_fill(torch.ones((), dtype=torch.bool, device=x.device), self.value)]
        y = x.view_as(x) if self.scale == 1 else x * self.scale
        y = y if self.shift == 0 else y + self.shift
        if self.divides:
            y = nan_at_zero()(y)
        return [y if self.power == 1 else y.pow(self.power)]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        x = bottoms[0]
        if self.fixed:
            return f"torch.full_like({x}, {number(self.value)})"
        x = x if self.scale == 1 else f"{x} * {number(self.scale)}"
        x = x if self.shift == 0 else f"{x} + {number(self.shift)}"
        return x if self.power == 1 else f"torch.pow({x}, {self.power!r})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if self.fixed:
            g.op("Expand", [g.constant(np.array(self.value, np.float32)), *g.op("Shape", bottoms)], tops)
            return
        steps = (("Mul", self.scale, 1), ("Add", self.shift, 0), ("Pow", self.power, 1))
        used = [(op, value) for op, value, neutral in steps if value != neutral]
        x = bottoms
        for index, (op, value) in enumerate(used):
            x = g.op(op, [*x, g.constant(np.array(value, np.float32))], tops if index == len(used) - 1 else 1)
        if not used:
            g.op("Identity", x, tops)
