"""PSROIPooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.roi_pooling import c_round, check_rois, split_rois

if TYPE_CHECKING:
    from torch import Tensor


@register
class PSROIPooling(Layer):
    """Means of group_size x group_size parts of each region, each part from channels of its own.

    Bottom 0 has output_dim group_size^2 channels: part (i, j) of top channel c reads channel
    (c group_size + i) group_size + j. Bottom 1 holds regions (item, x1, y1, x2, y2); they reach from
    round(x1) spatial_scale to (round(x2) + 1) spatial_scale, at least 0.1 long, halves rounded away from zero. A part
    takes all cells from the floor of its start to the ceil of its end, clipped to the map; without any it is 0. The
    regions have no gradient. Source: psroi_pooling_layer.cu of daijifeng001/caffe-rfcn.
    """

    TYPE = "PSROIPooling"
    DIALECTS = ("rfcn", "intel")
    PARAM = "psroi_pooling_param"
    BOTTOMS = (2, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        for name in ("output_dim", "group_size"):
            value = getattr(self.p, name)
            what = f"{name} {value} must be > 0"
            self.check(value > 0, what, field=f"psroi_pooling_param.{name}", remedy="correct it")
        self.group = self.p.group_size

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        check_rois(self, bottoms)
        wanted = self.p.output_dim * self.group**2
        what = f"a map with {bottoms[0][1]} channels for output_dim {self.p.output_dim} and group_size {self.group}"
        self.check(bottoms[0][1] == wanted, what, field="bottom[0]", remedy=f"feed {wanted} channels")
        return [(bottoms[1][0], self.p.output_dim, self.group, self.group)]

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        shape = self.reshape(bottoms)[0]
        x = bottoms[0]
        n, _, h, w = x.shape
        item, corners = split_rois(self, bottoms[1].to(x.dtype), n)
        whole = c_round(corners)
        start, end = whole[:, :2] * self.p.spatial_scale, (whole[:, 2:] + 1) * self.p.spatial_scale
        top, bottom = self._parts(start[:, 1], end[:, 1], h)
        left, right = self._parts(start[:, 0], end[:, 0], w)
        height, width = ((b - a).clamp(min=0) for a, b in ((top, bottom), (left, right)))
        area = (height.unsqueeze(2) * width.unsqueeze(1)).flatten()  # (R * G * G,)
        part, row, column = _cells(top, left, width, area)
        cells = x.reshape(n, -1, self.group**2, h, w).permute(0, 2, 3, 4, 1)  # (N, G * G, H, W, output_dim)
        values = cells[item[part // self.group**2], part % self.group**2, row, column]
        sums = x.new_zeros(len(area), shape[1]).index_add(0, part, values)
        means = sums / area.clamp(min=1).unsqueeze(1)
        return [means.reshape(-1, self.group, self.group, shape[1]).permute(0, 3, 1, 2).contiguous()]

    def _parts(self, start: Tensor, end: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """First cell of each part and the one behind its last, (R, group_size)."""
        import torch

        edge = torch.arange(self.group + 1, dtype=start.dtype, device=start.device)
        width = ((end - start).clamp(min=0.1) / self.group).unsqueeze(1)
        first, behind = (edges * width + start.unsqueeze(1) for edges in (edge[:-1], edge[1:]))
        low, high = first.floor().clamp(0, limit), behind.ceil().clamp(0, limit)
        return low.to(torch.int64), high.to(torch.int64)


def _cells(top: Tensor, left: Tensor, width: Tensor, area: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every cell of every part, one after the other: part, row, column.

    Args:
        top, left, width: first row, first column and columns of the parts, (R, G).
        area: cells of each part, (R * G * G,).
    """
    import torch

    group = top.shape[1]
    part = torch.arange(len(area), device=area.device).repeat_interleave(area)
    within = torch.arange(len(part), device=area.device) - (area.cumsum(0) - area)[part]
    line, across = part // group, part // group**2 * group + part % group  # (roi, i) and (roi, j), flat
    columns = width.flatten()[across]
    row = top.flatten()[line] + within // columns
    return part, row, left.flatten()[across] + within % columns
