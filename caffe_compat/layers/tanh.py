"""TanH."""

from __future__ import annotations

from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class TanH(Layer):
    """y = tanh(x) (tanh_layer.cpp)."""

    TYPE = "TanH"
    FROM_ONNX = True
    V1 = ("TANH",)
    V0 = ("tanh",)
    PARAM = "tanh_param"
    INPLACE = True

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [bottoms[0].tanh()]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        return f"torch.tanh({bottoms[0]})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        g.op("Tanh", bottoms, tops)
