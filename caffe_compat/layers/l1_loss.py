"""L1Loss."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.legacy_axes import legacy_sizes
from caffe_compat.layers.loss import LossLayer

if TYPE_CHECKING:
    from torch import Tensor


@register
class L1Loss(LossLayer):
    """loss = 1/N sum |a - b|, with gradients to both bottoms (l1_loss_layer.cpp of NVIDIA/caffe)."""

    TYPE = "L1Loss"
    DIALECTS = ("nvidia",)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        what = f"bottoms of shape {bottoms[0]} and {bottoms[1]} differ in the values per item"
        same = prod(bottoms[0][1:]) == prod(bottoms[1][1:])
        self.check(same, what, field="bottom[1]", remedy="make both bottoms the same size")

    def propagates(self, bottom: int) -> bool:
        return True

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        difference = bottoms[0] - bottoms[1].reshape(bottoms[0].shape)
        return [difference.abs().sum() / len(difference)]


@register
class L1LossFlownet2(LossLayer):
    """loss = 1/n sum |d| over all that are numbers in d, bottom 0 or the difference of both (l1loss_layer.cu).

    n is N, or with normalize_by_num_entries how many of the values are numbers, divided by C. The gradient where d is 0
    is that of negative values. |d| < plateau counts as 0, without a gradient.
    l2_per_location: loss = 1/n sum over places of sqrt(s + epsilon), s the sum of d^2 over the channels, divided by C
    with l2_prescale_by_channels; s < plateau^2 counts as 0.
    Source: lmb-freiburg/flownet2. There a single bottom has its NaN and values below the plateau set to 0; here it
    stays as it is.
    """

    TYPE = "L1Loss"
    DIALECTS = ("flownet2",)
    PARAM = "l1_loss_param"
    BOTTOMS = (1, 2)

    def check_batch(self, bottoms: Sequence[Shape]) -> None:
        legacy_sizes(self, bottoms)
        what = f"bottoms of shape {bottoms[0]} and {bottoms[-1]}"
        self.check(bottoms[0] == bottoms[-1], what, field="bottom[1]", remedy="make both bottoms the same size")
        what = f"the bottom has {len(bottoms[0])} axes; l2_per_location needs channels"
        fine = not self.p.l2_per_location or len(bottoms[0]) > 1
        self.check(fine, what, field="l1_loss_param.l2_per_location", remedy="give it a blob of two axes or more")

    def propagates(self, bottom: int) -> bool:
        return True

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        num, channels, *_ = legacy_sizes(self, [tuple(bottom.shape) for bottom in bottoms])
        difference = bottoms[0] - bottoms[1] if len(bottoms) > 1 else bottoms[0]
        known = ~difference.isnan()
        count = known.sum() / channels if self.p.normalize_by_num_entries else num
        difference = difference.where(known, 0)
        total = self._lengths(difference, channels) if self.p.l2_per_location else self._sizes(difference)
        return [total.sum() / count]

    def _sizes(self, difference: Tensor) -> Tensor:
        signs = (difference > 0).to(difference) * 2 - 1
        counted = difference.detach().abs() >= self.p.plateau
        return (difference * signs).where(counted, 0)

    def _lengths(self, difference: Tensor, channels: int) -> Tensor:
        squares = difference.square().sum(1) / (channels if self.p.l2_prescale_by_channels else 1)
        far = squares.detach() >= self.p.plateau * self.p.plateau
        counted = squares.where(far, 0)
        return counted.add(self.p.epsilon).sqrt()
