"""AbsVal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class AbsVal(Layer):
    """y = |x|. The gradient at 0 is 0; Caffe refuses to do it in place (absval_layer.cpp)."""

    TYPE = "AbsVal"
    FROM_ONNX = True
    V1 = ("ABSVAL",)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [bottoms[0].abs()]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        return f"{bottoms[0]}.abs()"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        g.op("Abs", bottoms, tops)
