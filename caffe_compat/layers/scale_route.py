"""ScaleRoute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.boxes import Floats, Indices, to_array
from caffe_compat.layers.cascade_boxes import areas
from caffe_compat.layers.legacy_axes import legacy_sizes

if TYPE_CHECKING:
    from torch import Tensor

MIDDLE = 256.0
"""The scale of the region taken when there is none, where no scale is stated."""


@register
class ScaleRoute(Layer):
    """The regions of some scales, and the rows of the other bottoms that belong to them (scale_route_layer.cpp).

    Bottom 0 holds regions (R, 5): item, x1, y1, x2, y2. A region's scale is the root of its area; those from low_scale
    to below high_scale stay, or else the one nearest to the middle of both on a logarithmic scale. Nothing has a
    gradient. Source: zhaoweicai/cascade-rcnn.
    """

    TYPE = "ScaleRoute"
    DIALECTS = ("cascade-rcnn",)
    PARAM = "scale_route_param"
    BOTTOMS = (1, None)
    TOPS = (1, None)
    BACKWARD = False
    VARIES = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = f"{self.tops} top(s) for {len(bottoms)} bottom(s)"
        self.check(self.tops == len(bottoms), what, field="top", remedy="list as many tops as bottoms")
        down = [index for index, stated in enumerate(self.param.propagate_down) if stated]
        what = "propagate_down is true, but nothing has a gradient"
        self.check(not down, what, field=f"propagate_down[{down[0] if down else 0}]", remedy="state false, or nothing")
        self.low = self.p.low_scale if self.has("low_scale") else 0.0
        self.high = self.p.high_scale if self.has("high_scale") else np.inf
        what = f"low_scale {self.p.low_scale} must be above 0"
        self.check(
            self.low > 0 or not self.has("low_scale"), what, field="scale_route_param.low_scale", remedy="raise it"
        )
        what = f"high_scale {self.high} is below low_scale {self.low}"
        self.check(self.high >= self.low, what, field="scale_route_param.high_scale", remedy="raise it")
        stated = [getattr(self.p, name) for name in ("low_scale", "high_scale") if self.has(name)]
        self.middle = np.sqrt(stated[0] * stated[-1]) if stated else MIDDLE

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        sizes = [legacy_sizes(self, bottoms, position) for position in range(len(bottoms))]
        what = f"regions of shape {bottoms[0]}"
        self.check(sizes[0][1] == 5, what, field="bottom[0]", remedy="feed (R, 5): item, x1, y1, x2, y2")
        for position, size in enumerate(sizes):
            what = f"bottom {position} has {size[0]} rows for {sizes[0][0]} regions"
            self.check(size[0] == sizes[0][0], what, field=f"bottom[{position}]", remedy="feed one for each region")
        return [(1, *size[1:]) for size in sizes]

    def propagates(self, bottom: int) -> bool:
        return False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        shapes = self.reshape(bottoms)
        kept = torch.from_numpy(self._kept(to_array(bottoms[0]).reshape(len(bottoms[0]), 5))).to(bottoms[0].device)
        return [b.detach()[kept].reshape(-1, *shape[1:]) for b, shape in zip(bottoms, shapes, strict=True)]

    def _kept(self, rois: Floats) -> Indices:
        self.check(len(rois) > 0, "no regions", field="bottom[0]", remedy="feed one at least")
        scales = np.sqrt(areas(rois[:, 1:]))
        kept = np.flatnonzero((scales >= np.float32(self.low)) & (scales < np.float32(self.high)))
        with np.errstate(divide="ignore"):
            return kept if len(kept) else np.abs(np.log2(scales / np.float32(self.middle))).argmin(keepdims=True)
