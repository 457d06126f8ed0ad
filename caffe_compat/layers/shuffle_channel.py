"""ShuffleChannel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import reshape

if TYPE_CHECKING:
    from torch import Tensor


@register
class ShuffleChannel(Layer):
    """The channels as `group` rows, read column by column: c = i (C / group) + j becomes j group + i.

    Source: shuffle_channel_layer.cpp of farmingyard/ShuffleNet.
    """

    TYPE = "ShuffleChannel"
    DIALECTS = ("shufflenet",)
    PARAM = "shuffle_channel_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.group = self.p.group
        self.check(self.group > 0, "group is 0", field="shuffle_channel_param.group", remedy="use 1 or more")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        what = f"the bottom has shape {bottoms[0]}; it takes four axes"
        self.check(len(bottoms[0]) == 4, what, field="bottom[0]", remedy="reshape it to (N, C, H, W)")
        what = f"{bottoms[0][1]} channels cannot be split into {self.group} equal groups"
        whole = bottoms[0][1] % self.group == 0
        self.check(whole, what, field="shuffle_channel_param.group", remedy="use a divisor of the channels")
        return [bottoms[0]]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        shape = self.reshape(bottoms)[0]
        rows = bottoms[0].reshape(shape[0], self.group, -1, *shape[2:])  # (N, group, C / group, H, W)
        return [rows.transpose(1, 2).reshape(shape)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        _, channels, height, width = self.bottom_shapes[0]
        rows = reshape(g, bottoms[0], [0, self.group, -1, height * width])
        reshape(g, g.op("Transpose", rows, perm=[0, 2, 1, 3])[0], [0, channels, height, width], tops)
