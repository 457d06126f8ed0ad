"""ROIAlign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.roi_pooling import channels_last, check_rois, grown, pooled_size, split_rois

if TYPE_CHECKING:
    from torch import Tensor


@register
class ROIAlign(Layer):
    """Values at (pooled_h + 1) x (pooled_w + 1) points of each region (roi_align_layer.cpp of zhaoweicai/cascade-rcnn).

    Bottom 1 holds regions (item, x1, y1, x2, y2), which grow by pad_ratio: x1 and x2 move outwards by
    (x2 - x1 + 1) pad_ratio. Point (i, j) is at start + (i, j) size / pooled, start = corner spatial_scale - 0.5, so
    the first and the last points lie on the region's edges. Values are bilinear between cells and constant within half
    a cell of the border; points further outside, and regions without area, give 0. The regions have no gradient.
    """

    TYPE = "ROIAlign"
    DIALECTS = ("cascade-rcnn",)
    PARAM = "roi_pooling_param"
    BOTTOMS = (2, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.pooled = pooled_size(self)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        check_rois(self, bottoms)
        return [(bottoms[1][0], bottoms[0][1], self.pooled[0] + 1, self.pooled[1] + 1)]

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        shape = self.reshape(bottoms)[0]
        x = bottoms[0]
        n, c, h, w = x.shape
        item, corners = split_rois(self, bottoms[1].to(x.dtype), n)
        x1, y1, x2, y2 = (grown(corners, self.p.pad_ratio) * self.p.spatial_scale - 0.5).unbind(1)
        top, below, share_y, inside_y = _points(y1, y2, self.pooled[0], h)
        left, beside, share_x, inside_x = _points(x1, x2, self.pooled[1], w)
        cells, start = channels_last(x), item.reshape(-1, 1, 1) * h

        def at(rows: Tensor, columns: Tensor) -> Tensor:
            """Channels of the cells, (R, pooled_h + 1, pooled_w + 1, C)."""
            return cells[(start + rows.unsqueeze(2)) * w + columns.unsqueeze(1)]

        share_x, share_y = share_x[:, None, :, None], share_y[:, :, None, None]
        upper = (1 - share_x) * at(top, left) + share_x * at(top, beside)
        lower = (1 - share_x) * at(below, left) + share_x * at(below, beside)
        y = (1 - share_y) * upper + share_y * lower
        proper = ((x2 > x1) & (y2 > y1)).reshape(-1, 1, 1)
        inside = (inside_y.unsqueeze(2) & inside_x.unsqueeze(1) & proper).unsqueeze(3)
        return [y.where(inside, 0).permute(0, 3, 1, 2).reshape(len(item), c, *shape[2:])]


def _points(start: Tensor, end: Tensor, count: int, limit: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`count` + 1 points from start to end among `limit` cells.

    Returns:
        The cells before and after each point, the share of the latter, and whether the point is inside; (R, count + 1).
    """
    import torch

    steps = torch.arange(count + 1, dtype=start.dtype, device=start.device)
    place = start.unsqueeze(1) + steps * ((end - start) / count).unsqueeze(1)
    inside = (place >= -0.5) & (place <= limit - 0.5)
    before = place.floor()
    low, high = (cell.clamp(0, limit - 1).to(torch.int64) for cell in (before, before + 1))
    return low, high, place.clamp(0, limit - 1) - low, inside
