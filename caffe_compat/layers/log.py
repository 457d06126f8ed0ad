"""Log."""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf, isnan, log
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.python_forms import number

if TYPE_CHECKING:
    from torch import Tensor


def log_base(layer: Layer) -> float:
    """log(base) of an Exp or Log layer; base -1 stands for e.

    Raises:
        LayerError: base is not positive, or its logarithm is not finite.
    """
    base, field = layer.p.base, f"{layer.PARAM}.base"
    if base == -1:
        return 1.0
    layer.check(base > 0, f"base {base:g}; it must be > 0, or -1 for e", field=field, remedy="state a positive base")
    value = log(base)
    finite = not (isnan(value) or isinf(value))
    layer.check(finite, f"the logarithm of base {base:g} is not finite", field=field, remedy="state a finite base")
    return value


@register
class Log(Layer):
    """y = log_base(shift + scale x); base -1 stands for e (log_layer.cpp).

    In place, Caffe's backward pass takes y for x; here the gradient is the true one.
    """

    TYPE = "Log"
    FROM_ONNX = True
    PARAM = "log_param"
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        value = log_base(self)
        what = f"base {self.p.base:g}: 1 / log(base) is not finite"
        self.check(value != 0, what, field="log_param.base", remedy="state a base other than 1")
        self.outer, self.scale, self.shift = 1 / value, self.p.scale, self.p.shift

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0] if self.scale == 1 else bottoms[0] * self.scale
        x = (x if self.shift == 0 else x + self.shift).log()
        return [x if self.outer == 1 else x * self.outer]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        x = bottoms[0] if self.scale == 1 else f"{bottoms[0]} * {number(self.scale)}"
        x = x if self.shift == 0 else f"{x} + {number(self.shift)}"
        return f"torch.log({x})" if self.outer == 1 else f"torch.log({x}) * {self.outer!r}"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        x = bottoms
        for op, value, neutral in (("Mul", self.scale, 1), ("Add", self.shift, 0)):
            if value != neutral:
                x = g.op(op, [*x, g.constant(np.array(value, np.float32))])
        if self.outer == 1:
            g.op("Log", x, tops)
        else:
            g.op("Mul", [*g.op("Log", x), g.constant(np.array(self.outer, np.float32))], tops)
