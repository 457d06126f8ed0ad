"""Filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import BOOL, reshape

if TYPE_CHECKING:
    from torch import Tensor


@register
class Filter(Layer):
    """Keeps the items of each bottom for which the last bottom, the selector, is not 0 (filter_layer.cpp).

    One top for each bottom but the selector. The shapes that the net is built with hold all items; the number of items
    that a forward pass gives depends on the selector, to which no gradient flows.
    """

    TYPE = "Filter"
    BOTTOMS = (2, None)
    TOPS = (1, None)
    VARIES = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = f"{self.tops} top(s) for {len(bottoms)} bottoms; the last is the selector"
        self.check(self.tops == len(bottoms) - 1, what, field="top", remedy=f"state {len(bottoms) - 1} tops")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        *items, selector = bottoms
        last = f"bottom[{len(items)}]"
        what = f"a selector of shape {selector}; only its first axis may be larger than 1"
        self.check(len(selector) >= 1 and set(selector[1:]) <= {1}, what, field=last, remedy="reshape it")
        for index, bottom in enumerate(items):
            what = f"bottom {index} has shape {bottom}, which does not begin with the selector's {selector[0]} items"
            self.check(bottom[:1] == selector[:1], what, field=f"bottom[{index}]", remedy="let the batches be equal")
        return items

    def propagates(self, bottom: int) -> bool:
        return bottom < self.tops

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        self.reshape(bottoms)
        *items, selector = bottoms
        chosen = selector.detach().reshape(-1).nonzero().reshape(-1)
        return [bottom.index_select(0, chosen) for bottom in items]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        *items, selector = bottoms
        chosen = g.op("Cast", reshape(g, selector, [-1]), to=BOOL)
        for bottom, top in zip(items, tops, strict=True):
            g.op("Compress", [bottom, *chosen], [top], axis=0)
