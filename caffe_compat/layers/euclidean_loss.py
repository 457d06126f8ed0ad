"""EuclideanLoss: half the mean squared distance."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.dec2013 import check_fields
from caffe_compat.layers.loss import Loss2013, LossLayer

if TYPE_CHECKING:
    from torch import Tensor


@register
class EuclideanLoss(LossLayer):
    """loss = 1/(2N) sum (a - b)^2, with gradients to both bottoms. Source: euclidean_loss_layer.cpp.

    In nets of C3D (v1.0), whose blobs have a length as well, bottoms may have five axes, and must be alike in all.
    """

    TYPE = "EuclideanLoss"
    V1 = ("EUCLIDEAN_LOSS",)
    V0 = ("euclidean_loss",)
    MAX_AXES = 4

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        what = f"bottoms of shape {bottoms[0]} and {bottoms[1]} differ in the values per item"
        same = bottoms[0] == bottoms[1] if self._videos else prod(bottoms[0][1:]) == prod(bottoms[1][1:])
        self.check(same, what, field="bottom[1]", remedy="make both bottoms the same size")

    @property
    def _videos(self) -> bool:
        return self.context.dialect == "c3d-v1.0"

    def most_axes(self) -> int | None:
        return 5 if self._videos else self.MAX_AXES

    def propagates(self, bottom: int) -> bool:
        return True

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        difference = bottoms[0] - bottoms[1].reshape(bottoms[0].shape)
        return [difference.square().sum() / (2 * len(difference))]


@register
class EuclideanLoss2013(Loss2013):
    """loss = 1/(2N) sum (a - b)^2, with a gradient to bottom 0 only; no top. Source: loss_layer.cu of December 2013."""

    TYPE = "EuclideanLoss"
    V0 = ("euclidean_loss",)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        check_fields(self, self.KNOWN)
        what = f"bottoms of shape {bottoms[0]} and {bottoms[1]} differ"
        self.check(bottoms[0] == bottoms[1], what, field="bottom[1]", remedy="make both bottoms the same size")

    def loss(self, bottoms: list[Tensor]) -> Tensor:
        difference = bottoms[0] - bottoms[1].detach()
        return difference.square().sum() / (2 * len(difference))
