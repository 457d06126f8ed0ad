"""SmoothL1Loss, as several forks have it: a quadratic near 0 that goes on as a straight line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.loss import LossLayer, check_same_sizes

if TYPE_CHECKING:
    from torch import Tensor


def smooth_l1(x: Tensor, sigma: float = 1.0) -> Tensor:
    """0.5 (sigma x)^2 where |x| < 1 / sigma^2, else |x| - 0.5 / sigma^2."""
    square = sigma * sigma
    size = x.abs()
    return (0.5 * square * x * x).where(size * square < 1, size - 0.5 / square)


class SmoothL1(LossLayer):
    """Base of the forks' smooth L1 losses."""

    MAX_AXES = 4

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        check_same_sizes(self, bottoms)

    def propagates(self, bottom: int) -> bool:
        return bottom < 2


@register
class SmoothL1LossSsd(SmoothL1):
    """loss = 1/N sum f(a - b), f(x) = x^2 / 2 where |x| < 1, else |x| - 1/2 (smooth_L1_loss_layer.cpp).

    Gradients go to both bottoms. Weights as a third bottom are in the fork's code, but it allows two bottoms only.
    Source: weiliu89/caffe, branch ssd.
    """

    TYPE = "SmoothL1Loss"
    DIALECTS = ("ssd",)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        self.reshape(bottoms)
        a, b = bottoms
        return [smooth_l1(a - b.reshape(a.shape)).sum() / len(a)]


@register
class SmoothL1Loss(SmoothL1):
    """loss = 1/N sum w_out f(w_in (a - b)), f(x) = (sigma x)^2 / 2 where |x| < 1/sigma^2, else |x| - 1/(2 sigma^2).

    Bottoms a, b and, both or neither, the weights w_in and w_out. Gradients go to a and b. The top has no loss_weight
    unless the net states one. Source: smooth_L1_loss_layer.cu of rbgirshick/caffe-fast-rcnn, branch faster-rcnn.
    """

    TYPE = "SmoothL1Loss"
    DIALECTS = ("fast-rcnn", "3d-faster-rcnn", "intel")
    PARAM = "smooth_l1_loss_param"
    BOTTOMS = (2, 4)
    LOSS = False

    @classmethod
    def takes(cls, bottoms: int, tops: int) -> bool:
        return bottoms != 3 and super().takes(bottoms, tops)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = "weights inside without weights outside"
        self.check(len(bottoms) != 3, what, field="bottom[2]", remedy="state both as bottoms 2 and 3, or neither")
        what = "sigma is 0"
        self.check(self.p.sigma != 0, what, field="smooth_l1_loss_param.sigma", remedy="use a number above 0")
        super().setup(bottoms)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        self.reshape(bottoms)
        a, b, *weights = (bottom.reshape(bottoms[0].shape) for bottom in bottoms)
        if not weights:
            return [smooth_l1(a - b, self.p.sigma).sum() / len(a)]
        inside, outside = (weight.detach() for weight in weights)
        return [(outside * smooth_l1(inside * (a - b), self.p.sigma)).sum() / len(a)]
