"""SoftmaxWithLossOHEM: SoftmaxWithLoss that also gives the loss of each label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.loss import normalization
from caffe_compat.layers.softmax_with_loss import SoftmaxWithLoss
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class SoftmaxWithLossRfcn(SoftmaxWithLoss):
    """SoftmaxWithLoss with a third top, of the labels' shape: the loss of each label, 0 where it does not count.

    The sum over that top divided by Z is the first top; no gradient comes from the second and the third.
    Source: softmax_loss_layer.cu of daijifeng001/caffe-rfcn.
    """

    DIALECTS: ClassVar[tuple[str, ...]] = ("rfcn",)
    TOPS = (1, 3)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(), bottoms[0], bottoms[1]][: self.tops]


@register
class SoftmaxWithLossOHEM(SoftmaxWithLossRfcn):
    """SoftmaxWithLoss with a third top, of the labels' shape: the loss of each label, 0 where it does not count.

    The sum over that top divided by Z is the first top; no gradient comes from the second and the third. In intel's
    fork Z may be PRE_FIXED, `loss_param.pre_fixed_normalizer`, at least 1; superxuang's dies of it.
    Source: softmax_loss_ohem_layer.cu of superxuang/caffe_3d_faster_rcnn.
    """

    TYPE = "SoftmaxWithLossOHEM"
    V1 = ()
    V0 = ()
    DIALECTS = ("3d-faster-rcnn", "intel")
    PRE_FIXED = True
    FORK_FIELDS = ("loss_param.pre_fixed_normalizer",)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        fine = self.context.dialect != "3d-faster-rcnn" or normalization(self.p) != pb.LossParameter.PRE_FIXED
        remedy = "state FULL, VALID, BATCH_SIZE or NONE, or name the dialect intel"
        what = "normalization PRE_FIXED, which this fork knows in SmoothL1LossOHEM alone"
        self.check(fine, what, field="loss_param.normalization", remedy=remedy)

    def normalizer(self, outer: int, inner: int, counted: Tensor | None) -> Any:
        if normalization(self.p) == pb.LossParameter.PRE_FIXED:
            return max(1.0, self.p.pre_fixed_normalizer)
        return super().normalizer(outer, inner, counted)
