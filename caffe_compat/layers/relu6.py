"""ReLU6."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class ReLU6(Layer):
    """y = min(max(x, 0), 6); the gradient passes where 0 < x < 6 (relu6_layer.cpp of chuanqi305/ssd).

    `relu6_param` has nothing but an engine.
    """

    TYPE = "ReLU6"
    DIALECTS = ("chuanqi305",)
    INPLACE = True

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        return [torch.nn.functional.relu6(bottoms[0])]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        return f"F.relu6({bottoms[0]})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        g.op("Clip", [*bottoms, *(g.constant(np.array(limit, np.float32)) for limit in (0, 6))], tops)
