"""Swish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.python_forms import number

if TYPE_CHECKING:
    from torch import Tensor


@register
class Swish(Layer):
    """y = x / (1 + exp(-beta x)) (swish_layer.cpp)."""

    TYPE = "Swish"
    PARAM = "swish_param"
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.beta = self.p.beta

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        x = bottoms[0]
        return [torch.nn.functional.silu(x) if self.beta == 1 else x * (x * self.beta).sigmoid()]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        x = bottoms[0]
        return f"F.silu({x})" if self.beta == 1 else f"{x} * torch.sigmoid({x} * {number(self.beta)})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        x = bottoms
        if self.beta != 1:
            x = g.op("Mul", [*bottoms, g.constant(np.array(self.beta, np.float32))])
        g.op("Mul", [bottoms[0], *g.op("Sigmoid", x)], tops)
