"""Parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class Parameter(Layer):
    """A learned blob of the given shape as top; it starts at 0 (parameter_layer.hpp)."""

    TYPE = "Parameter"
    PARAM = "parameter_param"
    BOTTOMS = (0, 0)
    BLOBS = ("weight",)

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [tuple(self.p.shape.dim)]

    def fillers(self) -> list[pb.FillerParameter]:
        return [pb.FillerParameter(type="constant")]

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [tuple(self.p.shape.dim)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [blobs[0].view_as(blobs[0])]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        g.op("Identity", blobs, tops)
