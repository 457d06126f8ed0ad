"""ContrastiveLoss: pulls similar pairs together, pushes others apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.loss import LossLayer

if TYPE_CHECKING:
    from torch import Tensor


@register
class ContrastiveLoss(LossLayer):
    """loss = 1/(2N) sum_i y_i d_i^2 + (1 - y_i) max(margin - d_i, 0)^2, d_i = |a_i - b_i|, y_i = 1 for similar pairs.

    With `legacy_version` the second term is max(margin - d_i^2, 0). Gradient of a: (a - b)/N for similar pairs; else,
    inside the margin, -(margin - d)/(d + 1e-4) (a - b)/N, or -(a - b)/N in the legacy version; that of b is its
    negative. The 1e-4 is in the gradient only. Source: contrastive_loss_layer.cpp.
    """

    TYPE = "ContrastiveLoss"
    V1 = ("CONTRASTIVE_LOSS",)
    PARAM = "contrastive_loss_param"
    BOTTOMS = (3, 3)
    MAX_AXES = 4

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        a, b, similar = ((*shape, 1, 1, 1, 1)[:4] for shape in bottoms)
        what = f"features of shape {bottoms[0]} and {bottoms[1]}; they must be N x C or N x C x 1 x 1 with one C"
        fine = a[1:] == b[1:] and a[2:] == (1, 1)
        self.check(fine, what, field="bottom[1]", remedy="put a Flatten layer before each")
        what = f"labels of shape {bottoms[2]} for {a[0]} pairs"
        one = similar[1:] == (1, 1, 1) and similar[0] >= a[0]
        self.check(one, what, field="bottom[2]", remedy="feed one label per pair, 0 for dissimilar")

    def propagates(self, bottom: int) -> bool:
        return bottom != 2

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        difference = bottoms[0].flatten(1) - bottoms[1].flatten(1)  # (N, C)
        squared = difference.square().sum(1)
        similar = bottoms[2].flatten()[: len(squared)].to(torch.int64) != 0
        with torch.no_grad():
            distance = squared.sqrt()
            legacy = self.p.legacy_version
            room = (self.p.margin - (squared if legacy else distance)).clamp(min=0)
            value = squared.where(similar, room if legacy else room.square()).sum()
            slope = -(room > 0).to(squared) if legacy else -room / (distance + 1e-4)
            slope = slope.masked_fill(similar, 1)
        pull = (slope * squared).sum()  # its gradient is Caffe's
        return [(value + (pull - pull.detach())) / (2 * len(squared))]
