"""L1Loss."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Shape, register
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
