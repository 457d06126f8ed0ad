"""TripletLoss: keeps an anchor nearer to its like than to others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.loss import LossLayer

if TYPE_CHECKING:
    from torch import Tensor


@register
class TripletLoss(LossLayer):
    """loss = 1/(2N) sum max(margin + |a - p|^2 - |a - n|^2, 0) (triplet_loss_layer.cpp of happynear/caffe-windows).

    Bottoms a, p, n: (N, C), or (N, C, 1, 1); all have gradients. Triplets below 1e-9 have none.
    """

    TYPE = "TripletLoss"
    DIALECTS = ("caffe-windows",)
    PARAM = "triplet_loss_param"
    BOTTOMS = (3, 3)
    MAX_AXES = 4

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        sizes = [(*shape, 1, 1, 1)[:4] for shape in bottoms]
        for position, size in enumerate(sizes):
            what = f"bottom {position} has shape {bottoms[position]}; all must be (N, C) of one size"
            fine = size == sizes[0] and size[2:] == (1, 1)
            self.check(fine, what, field=f"bottom[{position}]", remedy="put a Flatten layer before each")

    def propagates(self, bottom: int) -> bool:
        return True

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        a, p, n = (bottom.reshape(len(bottom), -1) for bottom in bottoms)
        apart = (a - p).square().sum(1) - (a - n).square().sum(1)  # (N,)
        losses = (self.p.margin + apart).clamp(min=0)
        return [losses.where(losses >= 1e-9, losses.detach()).sum() / (2 * len(a))]
