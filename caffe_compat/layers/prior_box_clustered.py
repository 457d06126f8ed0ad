"""PriorBoxClustered."""

from __future__ import annotations

from caffe_compat.layers.base import register
from caffe_compat.layers.prior_box import BasePriorBox, Pair


@register
class PriorBoxClustered(BasePriorBox):
    """Boxes of the given widths and heights around the cell centres of bottom 0: top (1, 2, cells * boxes * 4).

    Box i of each cell is width[i] x height[i] pixels. The rest is as in BasePriorBox.
    Source: prior_box_clustered_layer.cpp of openvinotoolkit/training_toolbox_caffe.
    """

    TYPE = "PriorBoxClustered"
    DIALECTS = ("openvino",)

    def box_sizes(self) -> list[Pair]:
        widths, heights = list(self.p.width), list(self.p.height)
        self.check(bool(widths), "width is missing", field="prior_box_param.width", remedy="state at least one")
        what = f"{len(heights)} height for {len(widths)} width"
        same = len(heights) == len(widths)
        self.check(same, what, field="prior_box_param.height", remedy="state one for each")
        for name, values in ("width", widths), ("height", heights):
            for position, size in enumerate(values):
                field = f"prior_box_param.{name}[{position}]"
                self.check(size > 0, f"{name} {size} is not positive", field=field, remedy="make it > 0")
        return list(zip(widths, heights, strict=True))
