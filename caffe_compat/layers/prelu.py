"""PReLU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.onnx_forms import append_axes
from caffe_compat.python_forms import call
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class PReLU(Layer):
    """y = max(x, 0) + slope min(x, 0) with a learned slope for each channel (axis 1), or one for all (prelu_layer.cpp).

    Blob 0: the slopes, shape (channels,), or () with channel_shared; 0.25 unless a filler is given. The gradient at 0
    is the slope. Bottoms have 2 to 4 axes (Blob::channels is a legacy accessor).
    """

    TYPE = "PReLU"
    FROM_ONNX = True
    PARAM = "prelu_param"
    BLOBS = ("weight",)
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = f"a bottom with {len(bottoms[0])} axes; PReLU takes 2 to 4"
        self.check(2 <= len(bottoms[0]) <= 4, what, field="bottom", remedy="reshape the bottom")

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [() if self.p.channel_shared else (bottoms[0][1],)]

    def fillers(self) -> list[pb.FillerParameter]:
        return [self.p.filler if self.has("filler") else pb.FillerParameter(type="constant", value=0.25)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        return [torch.prelu(bottoms[0], blobs[0])]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        if self.p.channel_shared:
            slope = w.module(call(w.part("Blobs"), weight="()"))
            return f"F.prelu({bottoms[0]}, {slope}.weight)"
        return f"{w.module(f'nn.PReLU({self.bottom_shapes[0][1]})')}({bottoms[0]})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        trailing = 0 if self.p.channel_shared else len(self.bottom_shapes[0]) - 2
        slopes = append_axes(g, blobs[0], self.blob_shapes(self.bottom_shapes)[0], trailing)
        g.op("PRelu", [bottoms[0], slopes], tops)
