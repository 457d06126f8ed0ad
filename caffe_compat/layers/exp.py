"""Exp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.layers.log import log_base

if TYPE_CHECKING:
    from torch import Tensor


@register
class Exp(Layer):
    """y = base^(shift + scale x); base -1 stands for e (exp_layer.cpp).

    Computed as outer * exp(inner * x) with inner = log(base) * scale and outer = base^shift.
    """

    TYPE = "Exp"
    FROM_ONNX = True
    V1 = ("EXP",)
    PARAM = "exp_param"
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        log = log_base(self)
        self.inner = log * self.p.scale
        with np.errstate(over="ignore"):
            self.outer = float(np.exp(log * self.p.shift).astype(np.float32))

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0] if self.inner == 1 else bottoms[0] * self.inner
        return [x.exp() if self.outer == 1 else x.exp() * self.outer]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        x = bottoms[0] if self.inner == 1 else f"{bottoms[0]} * {self.inner!r}"
        return f"torch.exp({x})" if self.outer == 1 else f"torch.exp({x}) * {self.outer!r}"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        x = bottoms
        if self.inner != 1:
            x = g.op("Mul", [*x, g.constant(np.array(self.inner, np.float32))])
        if self.outer != 1:
            g.op("Mul", [*g.op("Exp", x), g.constant(np.array(self.outer, np.float32))], tops)
        else:
            g.op("Exp", x, tops)
