"""SmoothL1LossOHEM: SmoothL1Loss that also gives the loss of each instance."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, ClassVar

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.loss import normalization
from caffe_compat.layers.smooth_l1_loss import SmoothL1, smooth_l1
from caffe_compat.layers.straight_through import straight_through
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class SmoothL1LossOHEM(SmoothL1):
    """loss = 1/Z sum f(w (a - b)), f(x) = x^2 / 2 where |x| < 1, else |x| - 1/2; w is bottom 2 or 1.

    Z by `loss_param.normalization`: FULL and VALID all positions N H W, BATCH_SIZE N, PRE_FIXED
    `pre_fixed_normalizer`, NONE 1; at least 1. A second top (N, 1, H, W) holds the sums over the channels; no gradient
    comes from it. Gradient of a: f'(w (a - b)) / Z, without the factor w, so w should be 0 or 1; that of b is its
    negative. The first top has no loss_weight unless the net states one.
    Source: smooth_L1_loss_ohem_layer.cu of superxuang/caffe_3d_faster_rcnn.
    """

    TYPE = "SmoothL1LossOHEM"
    DIALECTS: ClassVar[tuple[str, ...]] = ("3d-faster-rcnn", "intel")
    PARAM = "loss_param"
    BOTTOMS = (2, 3)
    TOPS = (1, 2)
    LOSS = False
    PRE_FIXED = True
    FORK_FIELDS = ("loss_param.pre_fixed_normalizer",)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        n, _, h, w = (*bottoms[0], 1, 1, 1)[:4]
        return [(), (n, 1, h, w)][: self.tops]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        shapes = self.reshape(bottoms)
        a, b, *weights = (bottom.reshape(bottoms[0].shape) for bottom in bottoms)
        difference = a - b
        x = difference.detach() * weights[0].detach() if weights else difference.detach()
        losses, z = smooth_l1(x), self._normalizer(bottoms[0].shape)
        loss = straight_through()((x.clamp(-1, 1) * difference).sum() / z, losses.sum() / z)
        return [loss, *(losses.sum(1).reshape(shape) for shape in shapes[1:])]

    def _normalizer(self, shape: Sequence[int]) -> float:
        mode = normalization(self.p)
        sizes = {
            pb.LossParameter.FULL: shape[0] * prod(shape[2:]),
            pb.LossParameter.VALID: shape[0] * prod(shape[2:]),
            pb.LossParameter.BATCH_SIZE: shape[0],
            pb.LossParameter.PRE_FIXED: self.p.pre_fixed_normalizer,
            pb.LossParameter.NONE: 1,
        }
        return max(1.0, float(sizes[mode]))


@register
class SmoothL1LossRfcn(SmoothL1LossOHEM):
    """What later forks call SmoothL1LossOHEM: loss = 1/Z sum f(w (a - b)), and the loss of each instance.

    Source: smooth_L1_loss_layer.cu of daijifeng001/caffe-rfcn.
    """

    TYPE = "SmoothL1Loss"
    DIALECTS = ("rfcn",)
