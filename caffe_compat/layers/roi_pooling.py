"""ROIPooling, and what layers that read regions of interest (rois) share with it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.layers.pooling import FLT_MAX
from caffe_compat.onnx_forms import reshape

if TYPE_CHECKING:
    from torch import Tensor


def pooled_size(layer: Layer) -> tuple[int, int]:
    """pooled_h and pooled_w of `roi_pooling_param`."""
    for name in ("pooled_h", "pooled_w"):
        size = getattr(layer.p, name)
        what = f"{name} {size} must be > 0"
        layer.check(size > 0, what, field=f"roi_pooling_param.{name}", remedy="state the number of parts")
    return layer.p.pooled_h, layer.p.pooled_w


def check_rois(layer: Layer, bottoms: Sequence[Shape]) -> None:
    """Bottom 0 is a map (N, C, H, W), bottom 1 has five values (item, x1, y1, x2, y2) for each region."""
    data, rois = bottoms[0], bottoms[1]
    what = f"the map has shape {data}; it takes four axes"
    layer.check(len(data) == 4, what, field="bottom[0]", remedy="reshape it to (N, C, H, W)")
    what = f"rois of shape {rois}; each must have five values: item, x1, y1, x2, y2"
    five = len(rois) >= 2 and prod(rois[1:]) == 5
    layer.check(five, what, field="bottom[1]", remedy="feed rois of shape (R, 5)")


def split_rois(layer: Layer, rois: Tensor, items: int) -> tuple[Tensor, Tensor]:
    """The item of each region, (R,) int64, and its corners x1, y1, x2, y2, (R, 4); without gradient.

    Raises:
        LayerError: a region of an item that is not there, or whose values are not finite.
    """
    import torch

    rois = rois.detach().reshape(-1, 5)
    item = rois[:, 0].to(torch.int64)
    if not torch.compiler.is_compiling():
        good = (rois.isfinite().all(1)) & (item >= 0) & (item < items)
        if not bool(good.all()):
            at = int((~good).nonzero()[0])
            what = f"roi {at} is {rois[at].tolist()}; its first value must be 0 to {items - 1}, the others finite"
            raise layer.error(what, field="bottom[1]", remedy="correct the rois")
    return item, rois[:, 1:]


def grown(corners: Tensor, ratio: float) -> Tensor:
    """Corners (R, 4) that move outwards by (size + 1) ratio."""
    import torch

    if not ratio:
        return corners
    low, high = corners[:, :2], corners[:, 2:]
    margin = (high - low + 1) * ratio
    return torch.cat([low - margin, high + margin], 1)


def c_round(x: Tensor) -> Tensor:
    """C's round: halves go away from zero."""
    whole = x.trunc()
    return whole + x.sign() * ((x - whole).abs() >= 0.5)


def bins(start: Tensor, size: Tensor, count: int, limit: int) -> tuple[Tensor, Tensor]:
    """`count` overlapping parts of `size` cells from `start`, clipped to 0..limit.

    Args:
        start, size: whole numbers, (R,).

    Returns:
        First cell and the one behind the last, (R, count) int64 each.
    """
    import torch

    edge = torch.arange(count + 1, dtype=size.dtype, device=size.device)
    width = (size / count).unsqueeze(1)
    first, behind = (edge[:-1] * width).floor(), (edge[1:] * width).ceil()
    low, high = ((part + start.unsqueeze(1)).clamp(0, limit).to(torch.int64) for part in (first, behind))
    return low, high


def channels_last(x: Tensor) -> Tensor:
    """(N, C, H, W) as rows of channels, (N * H * W, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def first_maxima(cells: Tensor, origin: Tensor, height: Tensor, width: Tensor, stride: int) -> Tensor:
    """The row of each window's maximum in each channel, the first where several are equal, -1 where there is none.

    Args:
        cells: (rows, C).
        origin, height, width: of the windows, (B,) int64.
        stride: rows from one line of a window to the next.

    Returns:
        (B, C) int64.
    """
    import torch

    least = -min(FLT_MAX, torch.finfo(cells.dtype).max)
    best = cells.new_full((len(origin), cells.shape[1]), least)
    place = torch.full_like(best, -1, dtype=torch.int64)
    some = (height > 0) & (width > 0)
    for i in range(int(height[some].max()) if bool(some.any()) else 0):
        for j in range(int(width[some].max())):
            live = ((height > i) & (width > j)).nonzero().squeeze(1)
            rows = origin[live] + (i * stride + j)
            values, old = cells[rows], best[live]
            better = values > old
            best[live] = values.where(better, old)
            place[live] = rows.unsqueeze(1).where(better, place[live])
    return place


@register
class ROIPooling(Layer):
    """Maxima of pooled_h x pooled_w parts of each region (roi_pooling_layer.cpp of rbgirshick/caffe-fast-rcnn).

    Bottom 1 holds regions (item, x1, y1, x2, y2). Corners are multiplied by spatial_scale and rounded, halves away
    from zero; both ends belong to the region, and a size below 1 counts as 1. Part i reaches from
    floor(i size / pooled) to ceil((i + 1) size / pooled), is clipped to the map, and gives 0 when nothing is left.
    The gradient goes to the first maximum of a part, row by row; regions whose end lies before their start get none.

    In zhaoweicai/cascade-rcnn regions grow first: x1 and x2 move outwards by (x2 - x1 + 1) pad_ratio, y1 and y2
    likewise; and regions whose end lies before their start have a gradient too.
    """

    TYPE = "ROIPooling"
    DIALECTS = ("fast-rcnn", "cascade-rcnn", "intel")
    PARAM = "roi_pooling_param"
    BOTTOMS = (2, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.pooled = pooled_size(self)
        check_rois(self, bottoms)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        check_rois(self, bottoms)
        return [(bottoms[1][0], bottoms[0][1], *self.pooled)]

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        self.reshape(bottoms)
        x = bottoms[0]
        item, corners = split_rois(self, bottoms[1].to(x.dtype), len(x))
        corners = c_round(grown(corners, self.p.pad_ratio) * self.p.spatial_scale)
        y = self._maxima(x, item, corners)
        if self.context.dialect in ("cascade-rcnn", "mscnn"):
            return [y]
        proper = (corners[:, 2:] >= corners[:, :2]).all(1)
        return [y.where(proper.reshape(-1, 1, 1, 1), y.detach())]

    def _maxima(self, x: Tensor, item: Tensor, corners: Tensor) -> Tensor:
        """The parts' maxima, (R, C, pooled_h, pooled_w)."""
        import torch

        c, h, w = x.shape[1:]
        x1, y1, x2, y2 = corners.unbind(1)
        top, bottom = bins(y1, (y2 - y1 + 1).clamp(min=1), self.pooled[0], h)
        left, right = bins(x1, (x2 - x1 + 1).clamp(min=1), self.pooled[1], w)
        origin = (item.reshape(-1, 1, 1) * h + top.unsqueeze(2)) * w + left.unsqueeze(1)  # (R, PH, PW)
        height = (bottom - top).unsqueeze(2).expand_as(origin).reshape(-1)
        width = (right - left).unsqueeze(1).expand_as(origin).reshape(-1)
        cells = channels_last(x)
        place = first_maxima(cells.detach(), origin.reshape(-1), height, width, w)  # (R * PH * PW, C)
        least = cells.new_tensor(-min(FLT_MAX, torch.finfo(x.dtype).max))
        nothing = least.where((height > 0) & (width > 0), 0).unsqueeze(1)
        y = cells.gather(0, place.clamp(min=0)).where(place >= 0, nothing)
        return y.reshape(-1, *self.pooled, c).permute(0, 3, 1, 2).contiguous()

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        rois = bottoms[1] if len(self.bottom_shapes[1]) == 2 else reshape(g, bottoms[1], [-1, 5])[0]
        if self.p.pad_ratio:
            rois = self._write_grown(g, rois)
        sizes = {"pooled_shape": list(self.pooled), "spatial_scale": self.p.spatial_scale}
        g.op("MaxRoiPool", [bottoms[0], rois], tops, **sizes)

    def _write_grown(self, g: OnnxWriter, rois: str) -> str:
        """The regions that have grown by pad_ratio."""
        item, low, high = (_columns(g, rois, *span) for span in ((0, 1), (1, 3), (3, 5)))
        size = g.op("Add", [*g.op("Sub", [high, low]), g.constant(np.array(1, np.float32))])
        margin = g.op("Mul", [*size, g.constant(np.array(self.p.pad_ratio, np.float32))])
        parts = [item, *g.op("Sub", [low, *margin]), *g.op("Add", [high, *margin])]
        return g.op("Concat", parts, axis=1)[0]


def _columns(g: OnnxWriter, rois: str, first: int, behind: int) -> str:
    bounds = (g.constant(np.array([value], np.int64)) for value in (first, behind, 1))
    return g.op("Slice", [rois, *bounds])[0]
