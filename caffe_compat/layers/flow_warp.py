"""FlowWarp."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class FlowWarp(Layer):
    """Each top cell takes the image's value at its own place plus the flow there (flow_warp_layer.cpp).

    Bottoms: image (N, C, H, W), flow (N, 2, H, W), x then y. Values are bilinear between cells, constant behind the
    last row and column. Places below 0, or H and W or more, give `fill_value`, 0 or NaN, and no gradient. The gradient
    of the flow is the derivative of the values, that of a whole place being the one towards larger places.
    Source: lmb-freiburg/flownet2.
    """

    TYPE = "FlowWarp"
    DIALECTS = ("flownet2",)
    PARAM = "flow_warp_param"
    BOTTOMS = (2, 2)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        image, flow = bottoms
        what = f"an image of shape {image} and a flow of shape {flow}"
        fine = len(image) == 4 and flow == (image[0], 2, *image[2:])
        self.check(fine, what, field="bottom[1]", remedy="feed an image (N, C, H, W) and a flow (N, 2, H, W)")
        return [image]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        image, flow = bottoms
        height, width = image.shape[2:]
        steps = [torch.arange(n, dtype=flow.dtype, device=flow.device) for n in (width, height)]
        x, y = flow[:, 0] + steps[0], flow[:, 1] + steps[1].unsqueeze(1)  # (N, H, W)
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        x, y = x.where(inside, 0), y.where(inside, 0)
        left, top = (place.detach().floor().to(torch.int64) for place in (x, y))
        right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
        alpha, beta = (x - left).unsqueeze(1), (y - top).unsqueeze(1)

        def at(rows: Tensor, columns: Tensor) -> Tensor:
            """The image's values there, (N, C, H, W)."""
            index = (rows * width + columns).flatten(1).unsqueeze(1).expand(-1, image.shape[1], -1)
            return image.flatten(2).gather(2, index).view(image.shape)

        upper = (1 - alpha) * at(top, left) + alpha * at(top, right)
        lower = (1 - alpha) * at(bottom, left) + alpha * at(bottom, right)
        fill = 0.0 if self.p.fill_value == pb.FlowWarpParameter.ZERO else nan
        return [((1 - beta) * upper + beta * lower).where(inside.unsqueeze(1), fill)]
