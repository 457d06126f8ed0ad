"""BatchReindex."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import INT64

if TYPE_CHECKING:
    from torch import Tensor


@register
class BatchReindex(Layer):
    """Items of bottom 0 in the order, and as often, as bottom 1 lists their indices (batch_reindex_layer.cpp).

    Bottom 1 has one axis and holds numbers from 0 to N - 1, which are cut to integers; no gradient flows to it.
    """

    TYPE = "BatchReindex"
    BOTTOMS = (2, 2)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        items, indices = bottoms
        what = f"bottom 1 has {len(indices)} axes; a list of indices has one"
        self.check(len(indices) == 1, what, field="bottom[1]", remedy="reshape it to one axis")
        self.check(len(items) >= 1, "bottom 0 has no axes", field="bottom[0]", remedy="let its first axis be the items")
        return [(*indices, *items[1:])]

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        items, indices = bottoms[0], bottoms[1].detach()
        count = items.shape[0]
        outside = bool(((indices < 0) | (indices >= count)).any())
        self.check(not outside, f"an index in bottom 1 is not in 0 to {count - 1}", remedy="feed indices of items")
        return [items.index_select(0, indices.long())]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        g.op("Gather", [bottoms[0], *g.op("Cast", [bottoms[1]], to=INT64)], tops, axis=0)
