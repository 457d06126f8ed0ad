"""AbsVal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class AbsVal(Layer):
    """y = |x|. The gradient at 0 is 0; Caffe refuses to do it in place (absval_layer.cpp)."""

    TYPE = "AbsVal"
    V1 = ("ABSVAL",)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [bottoms[0].abs()]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        g.op("Abs", bottoms, tops)
