"""MultinomialLogisticLoss: negative log likelihood of probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.loss import LOG_THRESHOLD, Loss2013, LossLayer, clamp_straight, label_indices

if TYPE_CHECKING:
    from torch import Tensor


@register
class MultinomialLogisticLoss(LossLayer):
    """loss = -1/N sum_i log(max(p_i[label_i], 1e-20)); all values of an item are its classes.

    Gradient: -1 / (N max(p, 1e-20)) at the label, also where it was clamped.
    Source: multinomial_logistic_loss_layer.cpp.
    """

    TYPE = "MultinomialLogisticLoss"
    V1 = ("MULTINOMIAL_LOGISTIC_LOSS",)
    V0 = ("multinomial_logistic_loss",)
    MAX_AXES = 4

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        what = f"labels of shape {bottoms[1]}; each item has one label"
        self.check(prod(bottoms[1][1:]) == 1, what, field="bottom[1]", remedy="feed N or N x 1 x 1 x 1 labels")

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [likelihood_loss(self, bottoms)]


@register
class MultinomialLogisticLoss2013(Loss2013):
    """loss = -1/N sum_i log(max(p_i[label_i], 1e-20)); no top. Source: loss_layer.cu of December 2013."""

    TYPE = "MultinomialLogisticLoss"
    V0 = ("multinomial_logistic_loss",)

    def loss(self, bottoms: list[Tensor]) -> Tensor:
        return likelihood_loss(self, bottoms)


def likelihood_loss(layer: Layer, bottoms: list[Tensor]) -> Tensor:
    """Mean negative logarithm of the labels' probabilities."""
    p = bottoms[0].flatten(1)  # (N, C)
    index, _ = label_indices(layer, bottoms[1].reshape(len(p), 1), p.shape[1])
    return -clamp_straight()(p.gather(1, index), LOG_THRESHOLD, None).log().sum() / len(p)
