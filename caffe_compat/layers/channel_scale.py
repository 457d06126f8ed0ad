"""ChannelScale."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.legacy_axes import legacy_sizes
from caffe_compat.layers.straight_through import straight_through

if TYPE_CHECKING:
    from torch import Tensor


@register
class ChannelScale(Layer):
    """y = x s with one factor s (N, 1, H, W) for all channels at a place (channel_scale_layer.cpp).

    Without `do_forward` y = x; without `do_backward_feature` the gradient of x is that of y, without
    `do_backward_scale` s has none. Not followed: global_scale, whose factor only the fork's GPU code moves.
    Source: happynear/caffe-windows.
    """

    TYPE = "ChannelScale"
    DIALECTS = ("caffe-windows",)
    PARAM = "channel_scale_param"
    BOTTOMS = (2, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        field = "channel_scale_param.global_scale"
        self.check(not self.p.global_scale, "global_scale is not followed", field=field, remedy="remove it")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        num, _, height, width = legacy_sizes(self, bottoms)
        what = f"factors of shape {bottoms[1]} for a bottom of shape {bottoms[0]}"
        fits = prod(bottoms[1]) == num * height * width and legacy_sizes(self, bottoms, 1)[0] == num
        self.check(fits, what, field="bottom[1]", remedy=f"feed ({num}, 1, {height}, {width})")
        return [bottoms[0]]

    def propagates(self, bottom: int) -> bool:
        return bottom == 0 or self.p.do_backward_scale

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        shape = self.reshape(bottoms)[0]
        x, factors = bottoms
        spread = factors.reshape(shape[0], 1, *shape[2:])
        if not self.p.do_backward_scale:
            spread = spread.detach()
        y = (x if self.p.do_backward_feature else x.detach()) * spread
        if not self.p.do_backward_feature:
            y = y + straight_through()(x, x.new_zeros(x.shape))
        return [y if self.p.do_forward else straight_through()(y, x.detach())]
