"""SubRegion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.legacy_axes import legacy_sizes

if TYPE_CHECKING:
    from torch import Tensor


@register
class SubRegion(Layer):
    """Parts of a map around points (subregion_layer.cpp, subregion_layer.cu of happynear/caffe-windows).

    Bottoms: a map (N, C, H, W), points (N, 2 P) from the middle of an image of data_width x data_height, and their true
    places. Each part has region_height x region_width values, 0 outside the map, and starts at
    floor(point W / data_width + W / 2 - region_width / 2), likewise in y; the halves of odd sizes are rounded down.
    With as_dim 0 the parts are items (P N, C, ...), point by point, else channels (N, P C, ...). Tops 1 and 2: the true
    places relative to the parts' middles, and these middles. Only the map has a gradient.
    """

    TYPE = "SubRegion"
    DIALECTS = ("caffe-windows",)
    PARAM = "sub_region_param"
    BOTTOMS = (3, 3)
    TOPS = (1, 3)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        for name in ("region_height", "region_width", "data_height", "data_width"):
            value = getattr(self.p, name)
            self.check(value > 0, f"{name} is {value}", field=f"sub_region_param.{name}", remedy="state it")
        what = f"the map has shape {bottoms[0]}; it takes four axes"
        self.check(len(bottoms[0]) == 4, what, field="bottom[0]", remedy="reshape it to (N, C, H, W)")
        self.check(self.tops != 2, f"{self.tops} tops", field="top", remedy="list one, or three")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        num, channels = bottoms[0][:2]
        for position in (1, 2):
            rows, values = legacy_sizes(self, bottoms, position)[:2]
            what = f"bottom {position} has shape {bottoms[position]}"
            fits = rows == num and values % 2 == 0 and bottoms[position] == bottoms[1]
            self.check(fits, what, field=f"bottom[{position}]", remedy=f"feed ({num}, 2 P), x and y of each point")
        points = legacy_sizes(self, bottoms, 1)[1] // 2
        size = (self.p.region_height, self.p.region_width)
        first = (num, channels * points, *size) if self.p.as_dim else (num * points, channels, *size)
        return [first, bottoms[1], bottoms[1]][: self.tops]

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        shapes = self.reshape(bottoms)
        x, points, truth = bottoms[0], *(bottom.detach().reshape(len(bottoms[0]), -1, 2) for bottom in bottoms[1:])
        height, width = x.shape[2:]
        size, data = x.new_tensor([width, height]), x.new_tensor([self.p.data_width, self.p.data_height])
        region = (self.p.region_width, self.p.region_height)
        half = x.new_tensor([side // 2 for side in region])
        start = ((points / data + 0.5) * size - half).floor()  # (N, P, 2), x and y
        columns, rows = (
            start[..., axis : axis + 1].long() + torch.arange(region[axis], device=x.device) for axis in (0, 1)
        )
        inside = ((rows >= 0) & (rows < height)).unsqueeze(3) & ((columns >= 0) & (columns < width)).unsqueeze(2)
        items = torch.arange(len(x), device=x.device)[:, None, None, None]
        picked = x[items, :, rows.clamp(0, height - 1).unsqueeze(3), columns.clamp(0, width - 1).unsqueeze(2)]
        parts = (picked * inside.unsqueeze(4)).permute(0, 1, 4, 2, 3)  # (N, P, C, region height, region width)
        top = parts if self.p.as_dim else parts.transpose(0, 1)
        middles = (start + x.new_tensor(region) / 2 + 0.5) / size * data
        places = truth + x.new_tensor([side // 2 for side in (self.p.data_width, self.p.data_height)]) - middles
        tops = zip((top, places, middles), shapes, strict=False)
        return [top.reshape(shape) for top, shape in tops]
