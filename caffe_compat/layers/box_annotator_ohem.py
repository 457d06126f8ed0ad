"""BoxAnnotatorOHEM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, Shape, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class BoxAnnotatorOHEM(Layer):
    """Keeps, for each item, the `roi_per_img` regions with the largest losses (online hard example mining).

    Bottoms: rois (R, 5, H, W) whose first channel is the item, losses and labels (R, 1, H, W), box weights
    (R, K, H, W). Tops: labels, `ignore_label` where not kept, and box weights, 0 where not kept. Of equal losses the
    first counts as larger (the fork's sort leaves that open). Nothing has a gradient.
    Source: box_annotator_ohem_layer.cu of daijifeng001/caffe-rfcn.
    """

    TYPE = "BoxAnnotatorOHEM"
    DIALECTS = ("rfcn", "intel")
    PARAM = "box_annotator_ohem_param"
    BOTTOMS = (4, 4)
    TOPS = (2, 2)
    BACKWARD = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = f"roi_per_img {self.p.roi_per_img} must be > 0"
        field = "box_annotator_ohem_param.roi_per_img"
        self.check(self.p.roi_per_img > 0, what, field=field, remedy="state how many regions to keep")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        shapes = [(*shape, 1, 1, 1)[:4] for shape in bottoms]
        for position, (shape, channels) in enumerate(zip(shapes, (5, 1, 1, None), strict=True)):
            wanted = (shapes[0][0], channels or shape[1], *shapes[0][2:])
            what = f"bottom {position} has shape {bottoms[position]}; {wanted} fits the others"
            fine = 1 <= len(bottoms[position]) <= 4 and shape == wanted
            self.check(fine, what, field=f"bottom[{position}]", remedy="feed rois, losses, labels and box weights")
        return [shapes[2], shapes[3]]

    def propagates(self, bottom: int) -> bool:
        return False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        kept, weighted = self.reshape(bottoms)
        rois, losses, labels, weights = (bottom.detach() for bottom in bottoms)
        item = rois.reshape(kept[0], 5, *kept[2:])[:, 0].flatten().to(torch.int64)  # (R * H * W,)
        if not torch.compiler.is_compiling():
            what = "a region of an item below 0, or no regions"
            self.check(bool(item.numel()) and bool(item.min() >= 0), what, field="bottom[0]", remedy="correct the rois")
        order = losses.flatten().argsort(descending=True, stable=True)
        order = order[item[order].argsort(stable=True)]  # by item, then by falling loss
        counts = item.bincount()
        rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[item[order]]
        keep = torch.zeros_like(item, dtype=torch.bool).index_fill(0, order[rank < self.p.roi_per_img], True)
        keep = keep.reshape(kept)
        return [labels.reshape(kept).where(keep, self.p.ignore_label), weights.reshape(weighted).where(keep, 0)]
