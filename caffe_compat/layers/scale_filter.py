"""ScaleFilter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class ScaleFilter(Layer):
    """TRAIN: each channel of each item times a number drawn from min_scale to max_scale; TEST: y = x.

    Source: scale_filter_layer.cpp of openvinotoolkit/training_toolbox_caffe; its debug builds ask for
    0 < min_scale < max_scale.
    """

    TYPE = "ScaleFilter"
    DIALECTS = ("openvino",)
    PARAM = "scale_filter_param"
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = f"the bottom has shape {bottoms[0]}; four axes are needed"
        self.check(len(bottoms[0]) == 4, what, field="bottom[0]", remedy="reshape it to (N, C, H, W)")
        low, high = self.p.min_scale, self.p.max_scale
        what, field = f"min_scale {low:g} is not positive", "scale_filter_param.min_scale"
        self.check(low > 0, what, field=field, remedy="use a positive scale")
        what, field = f"max_scale {high:g} <= min_scale {low:g}", "scale_filter_param.max_scale"
        self.check(high > low, what, field=field, remedy="raise it")

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        if self.phase == "TEST":
            return [x.view_as(x)]
        return [x * x.new_empty((*x.shape[:2], 1, 1)).uniform_(self.p.min_scale, self.p.max_scale)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if self.phase != "TEST":
            super().to_onnx(g, bottoms, tops, blobs)
        g.op("Identity", bottoms, tops)
