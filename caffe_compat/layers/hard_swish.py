"""HardSwish."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class HardSwish(Layer):
    """y = x min(max(x + 3, 0), 6) / 6 (hard_swish_layer.cpp of synopsys-caffe).

    The fork has no backward pass; the gradient is the derivative.
    """

    TYPE = "HardSwish"
    DIALECTS = ("synopsys",)
    INPLACE = True

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        from torch.nn.functional import hardswish

        return [hardswish(bottoms[0])]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        zero, three, six = (g.constant(np.array(value, np.float32)) for value in (0, 3, 6))
        gate = g.op("Clip", [*g.op("Add", [bottoms[0], three]), zero, six])
        g.op("Div", [*g.op("Mul", [bottoms[0], *gate]), six], tops)
