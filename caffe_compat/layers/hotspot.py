"""Hotspot."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.legacy_axes import legacy_sizes

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 1e-4
"""What is not above it counts as 0."""


@register
class Hotspot(Layer):
    """Maps with a Gaussian around each point (hotspot_layer.cpp of happynear/caffe-windows).

    Bottom 0 holds points (N, 2 P), x and y in an image of data_width x data_height, from its middle if mean_removed.
    The top (N, P, H, W) has output_height and output_width, or the size of bottom 1. No gradient.
    """

    TYPE = "Hotspot"
    DIALECTS = ("caffe-windows",)
    PARAM = "hotspot_param"
    BOTTOMS = (1, None)
    BACKWARD = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = f"data_height {self.p.data_height}, data_width {self.p.data_width}"
        stated = self.p.data_height > 0 and self.p.data_width > 0
        self.check(stated, what, field="hotspot_param", remedy="state the size of the images")
        what = f"output_height {self.p.output_height}, output_width {self.p.output_width}, and no second bottom"
        self.sized = self.p.output_height > 0 and self.p.output_width > 0
        self.check(self.sized or len(bottoms) > 1, what, field="hotspot_param", remedy="state both")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        num, values = legacy_sizes(self, bottoms)[:2]
        what = f"points of shape {bottoms[0]}"
        self.check(values % 2 == 0, what, field="bottom[0]", remedy="feed x and y of each")
        own = (self.p.output_height, self.p.output_width)
        height, width = own if self.sized else legacy_sizes(self, bottoms, 1)[2:]
        return [(num, values // 2, height, width)]

    def propagates(self, bottom: int) -> bool:
        return False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        shape = self.reshape(bottoms)[0]
        points = bottoms[0].detach().reshape(*shape[:2], 2)
        size = points.new_tensor([self.p.data_width, self.p.data_height])
        middles = (points / size + (0.5 if self.p.mean_removed else 0)) * points.new_tensor([shape[3], shape[2]])
        x, y = (torch.arange(n, dtype=points.dtype, device=points.device) for n in (shape[3], shape[2]))
        std = self.p.gaussian_std
        across, down = x - middles[..., :1], y - middles[..., 1:]
        squares = down.unsqueeze(3).square() + across.unsqueeze(2).square()
        values = (squares / (-2 * std * std)).exp() / (2 * pi * std * std)
        return [values.where(values > LEAST, 0)]
