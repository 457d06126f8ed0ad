"""SigmoidCrossEntropyLoss: independent logistic losses with targets between 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.loss import LossLayer, ignored_label, normalization, normalizer
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class SigmoidCrossEntropyLoss(LossLayer):
    """loss = -1/Z sum_i t_i log s(x_i) + (1 - t_i) log(1 - s(x_i)), s the logistic function.

    Targets whose integer part equals `loss_param.ignore_label` do not count (0.7 does not when 0 is ignored).
    Z as in SoftmaxWithLoss, but BATCH_SIZE by default. Gradient: (s(x) - t) / Z.
    Source: sigmoid_cross_entropy_loss_layer.cpp.
    """

    TYPE = "SigmoidCrossEntropyLoss"
    V1 = ("SIGMOID_CROSS_ENTROPY_LOSS",)
    PARAM = "loss_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        data, targets = bottoms
        what = f"data of shape {data} and targets of shape {targets} differ in their number of values"
        self.check(prod(data) == prod(targets), what, field="bottom[1]", remedy="feed one target per value")

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        data = bottoms[0]
        targets = bottoms[1].detach().reshape(data.shape)
        losses = binary_cross_entropy_with_logits(data, targets, reduction="none")
        ignore = ignored_label(self.p)
        counted = None if ignore is None else targets.to(torch.int64) != ignore
        if counted is not None:
            losses = losses.where(counted, 0)
        mode = normalization(self.p, pb.LossParameter.BATCH_SIZE)
        return [losses.sum() / normalizer(mode, data.shape[0], prod(data.shape[1:]), counted)]
