"""GeneralContrastiveLoss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.loss import LossLayer, label_indices
from caffe_compat.layers.straight_through import straight_through

if TYPE_CHECKING:
    from torch import Tensor


@register
class GeneralContrastiveLoss(LossLayer):
    """Draws each item to its class and pushes it from the others, by distances d (N, C) and labels (N).

    loss = 1/N (sum over items of positive_weight min(positive_outlier_thresh, max(0, d_label - positive_margin))
           + sum over the other classes with d < negative_margin of negative_weight (negative_margin - d)),
    or of negative_weight exp(-d) with exp_negative_weight. A third bottom holds the distances in place of the first,
    which has the gradient all the same. max_positive_only: the label's part counts for the item where it is least
    alone; max_negative_only: only each item's largest other part counts, if it is above that of class 0.
    positive_first: where d_label is above positive_upper_bound the other classes do not count, and the gradient of
    d_label is positive_weight. normalize_negative: the others' gradients are brought to that share of positive_weight
    when they have more. add_intra_mae: negative_margin grows by a moving mean of the labels' parts, up to
    max_negative_margin. Top 1 holds the means of both parts, without weights, and that moving mean.
    Source: general_constrastive_loss_layer.cpp of happynear/caffe-windows.
    """

    TYPE = "GeneralContrastiveLoss"
    DIALECTS = ("caffe-windows",)
    PARAM = "general_contrastive_loss_param"
    BOTTOMS = (2, 3)
    TOPS = (1, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        what = f"distances of shape {bottoms[0]} and of shape {bottoms[-1]}"
        same = len(bottoms) < 3 or bottoms[0] == bottoms[2]
        self.check(same, what, field="bottom[2]", remedy="make both the same size")
        self.mean = 0.0

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        shapes: list[Shape] = [(), (2 + self.p.add_intra_mae,)]
        return shapes[: self.tops]

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        p, x = self.p, bottoms[0].flatten(1)
        d = (bottoms[2] if len(bottoms) > 2 else bottoms[0]).detach().flatten(1)
        index, _ = label_indices(self, bottoms[1].reshape(-1), d.shape[1], field=self.PARAM)
        own = torch.zeros_like(d, dtype=torch.bool).scatter(1, index.unsqueeze(1), True)
        margin = p.negative_margin + (self.mean if p.add_intra_mae else 0.0)
        near = ~own & (d < margin)
        drawn = (d - p.positive_margin).clamp(min=0, max=p.positive_outlier_thresh)
        pushed = (-d).exp() if p.exp_negative_weight else margin - d
        parts = (drawn * p.positive_weight).where(own, (pushed * p.negative_weight).where(near, 0))
        counted, slopes = self._counted(parts, own, d, near)
        loss = (parts * counted).abs().sum() / len(d)
        if not p.exp_negative_weight:
            pushed = torch.ones_like(d)
        slope = slopes.to(d) * p.positive_weight - (pushed * p.negative_weight).where(counted & near, 0)
        slope = self._balanced(slope, own)
        positive, negative = drawn[own].sum() / len(d), (margin - d)[near].sum() / len(d)
        self.mean = min(0.99 * self.mean + 0.01 * float(positive), p.max_negative_margin)
        means = [positive, negative / (d.shape[1] - 1), positive.new_tensor(self.mean)][: 2 + p.add_intra_mae]
        return [straight_through()((x * slope).sum() / len(d), loss), torch.stack(means)][: self.tops]

    def _counted(self, parts: Tensor, own: Tensor, d: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        """Which parts count, and where the label's distance has a gradient."""
        p, labels = self.p, own.to(d)
        counted = own | near
        far = (d > p.positive_upper_bound) & own if p.positive_first else own & False
        counted = counted & ~(far.any(1, keepdim=True) & ~own)
        if p.max_positive_only:
            least = (parts * labels).sum(1)
            counted = counted & ~own | (own & first_of(least, least.min()).unsqueeze(1))
        if p.max_negative_only:
            rivals = parts.where(~own, float("-inf"))
            rivals[:, 0] = parts[:, 0]
            best = rivals.amax(1, keepdim=True)
            counted = counted & (own | first_of(rivals, best))
        inside = (d > p.positive_margin) & (d < p.positive_outlier_thresh)
        return counted, own & (counted & inside | far)

    def _balanced(self, slope: Tensor, own: Tensor) -> Tensor:
        """Gradients with those of the other classes brought to their share."""
        if not self.has("normalize_negative"):
            return slope
        total = slope.where(~own, 0).sum().abs() / self.p.normalize_negative / len(slope)
        return slope.where(own, slope / total) if bool(total > self.p.positive_weight) else slope


def first_of(values: Tensor, value: Tensor) -> Tensor:
    """Where a value stands for the first time along the last axis."""
    equal = values == value
    return equal & (equal.cumsum(-1) == 1)
