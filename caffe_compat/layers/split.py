"""Split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Split(Layer):
    """The bottom as any number of tops, whose gradients add up; Caffe refuses to do it in place (split_layer.cpp)."""

    TYPE = "Split"
    FROM_ONNX = True
    V1 = ("SPLIT",)
    V0 = ("split",)
    TOPS = (1, None)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [bottoms[0].view_as(bottoms[0]) for _ in range(self.tops)]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        return bottoms[0] if self.tops == 1 else f"({', '.join(bottoms * self.tops)})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        for top in tops:
            g.op("Identity", bottoms, [top])
