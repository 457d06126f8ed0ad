"""SoftmaxWithLoss: softmax along an axis and the negative log likelihood of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, prod
from typing import TYPE_CHECKING, Any, ClassVar

from caffe_compat.dialects import BVLC
from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.loss import (
    FLT_MIN,
    Loss2013,
    LossLayer,
    check_label_count,
    clamp_straight,
    ignored_label,
    label_indices,
    normalization,
    normalizer,
)

if TYPE_CHECKING:
    from torch import Tensor


@register
class SoftmaxWithLoss(LossLayer):
    """loss = -1/Z sum_i log(max(p_i[label_i], FLT_MIN)), p = softmax of bottom 0 along `softmax_param.axis`.

    Labels that equal `loss_param.ignore_label` do not count. Z by `loss_param.normalization`: FULL all positions,
    VALID those that count, BATCH_SIZE the items before the axis, NONE 1; at least 1. Gradient: (p - onehot) / Z,
    also where the logarithm was clamped. A second top holds p; no gradient comes from it. BVLC Caffe refuses it: it
    hands the two loss weights on to the Softmax layer inside, which has one top. Source: softmax_loss_layer.cpp.
    """

    TYPE = "SoftmaxWithLoss"
    V1: ClassVar[tuple[str, ...]] = ("SOFTMAX_LOSS",)
    V0: ClassVar[tuple[str, ...]] = ("softmax_loss",)
    PARAM = "loss_param"
    TOPS = (1, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        what = "2 tops, which Caffe allows no number of loss_weight values for"
        remedy = "give it one top, and take probabilities from a Softmax layer"
        self.check(self.tops == 1 or self.context.dialect not in ("", BVLC), what, field="top[1]", remedy=remedy)
        axis = self.axis(self.param.softmax_param.axis, len(bottoms[0]), "softmax_param.axis")
        check_label_count(self, bottoms[0], bottoms[1], axis)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(), bottoms[0]][: self.tops]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        data, labels = bottoms[0], bottoms[1]
        axis = self.param.softmax_param.axis % data.ndim
        outer, inner = prod(data.shape[:axis]), prod(data.shape[axis + 1 :])
        classes = data.shape[axis]
        if inner == 1:  # the last axis is the one that torch is fast along
            log_p = torch.log_softmax(data.reshape(outer, classes), 1).unsqueeze(2)
        else:
            log_p = torch.log_softmax(data.reshape(outer, classes, inner), 1)
        index, counted = label_indices(self, labels.reshape(outer, 1, inner), classes, ignored_label(self.p))
        losses = clamp_straight()(-log_p.gather(1, index), None, -log(FLT_MIN))  # (outer, 1, inner)
        if counted is not None:
            losses = losses.where(counted, 0)
        loss = losses.sum() / self.normalizer(outer, inner, counted)
        tops = [loss, log_p.detach().exp().view(data.shape), losses.detach().reshape(labels.shape)]
        return tops[: self.tops]

    def normalizer(self, outer: int, inner: int, counted: Tensor | None) -> Any:
        """Z for that many items and positions, and which of the labels count."""
        return normalizer(normalization(self.p), outer, inner, counted)


@register
class SoftmaxLoss2013(Loss2013):
    """loss = -1/N sum_i log(max(p_i[label_i], FLT_MIN)), p = softmax over all values of an item; no top.

    Gradient: (p - onehot) / N to bottom 0. Source: softmax_loss_layer.cu of December 2013.
    """

    TYPE = "SoftmaxWithLoss"
    V0 = ("softmax_loss",)

    def loss(self, bottoms: list[Tensor]) -> Tensor:
        import torch

        log_p = torch.log_softmax(bottoms[0].flatten(1), 1)
        index, _ = label_indices(self, bottoms[1].reshape(-1, 1), log_p.shape[1])
        return clamp_straight()(-log_p.gather(1, index), None, -log(FLT_MIN)).sum() / len(log_p)
