"""Sigmoid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Sigmoid(Layer):
    """y = 1 / (1 + exp(-x)) (sigmoid_layer.cpp)."""

    TYPE = "Sigmoid"
    FROM_ONNX = True
    V1 = ("SIGMOID",)
    V0 = ("sigmoid",)
    PARAM = "sigmoid_param"
    INPLACE = True

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [bottoms[0].sigmoid()]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        return f"torch.sigmoid({bottoms[0]})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        g.op("Sigmoid", bottoms, tops)
