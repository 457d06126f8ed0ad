"""HingeLoss: one-versus-all margins."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.loss import LossLayer, label_indices
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class HingeLoss(LossLayer):
    """loss = 1/N sum_ij max(0, 1 - d_ij x_ij)^p, d_ij = 1 for the label of item i, else -1.

    All values of an item are its classes. `hinge_loss_param.norm`: L1 has p = 1, L2 has p = 2. Gradient 0 where the
    margin is met exactly. Source: hinge_loss_layer.cpp.
    """

    TYPE = "HingeLoss"
    V1 = ("HINGE_LOSS",)
    PARAM = "hinge_loss_param"
    MAX_AXES = 4

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        self.check(
            prod(bottoms[0]) > 0 and prod(bottoms[1]) > 0,
            f"empty bottoms of shape {bottoms[0]} and {bottoms[1]}",
            field="bottom[0]",
            remedy="feed at least one item",
        )

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        scores = bottoms[0].reshape(len(bottoms[0]), -1)  # (N, C)
        index, _ = label_indices(self, bottoms[1].flatten()[: len(scores)], scores.shape[1])
        sign = torch.ones_like(scores, requires_grad=False).scatter_(1, index[:, None], -1)
        margins = torch.relu(1 + sign * scores)
        losses = margins.square() if self.p.norm == pb.HingeLossParameter.L2 else margins
        return [losses.sum() / len(scores)]
