"""MarginInnerProduct."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.fillers import check_fillers
from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.loss import label_indices
from caffe_compat.layers.straight_through import straight_through
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

MARGINS = pb.MarginInnerProductParameter


@register
class MarginInnerProduct(Layer):
    """Inner products with rows of length 1, where that of the label is lowered by an angular margin (SphereFace).

    y_j = x . w_j, but for the label |x| psi(t), t the angle between x and w_j, and cos(m t) = a polynomial of cos t:
    psi = (-1)^k cos(m t) - 2 k for t from k pi/m to (k + 1) pi/m, m = 1 to 4 by `type`. The label's top is
    (|x| psi + lambda x . w) / (1 + lambda), lambda = max(base (1 + gamma i)^-power, lambda_min), i the number of this
    forward pass, counted from `iteration`. Each forward pass brings the weight's rows to length 1. Top 1 is lambda.
    Gradients are the fork's: the weight's that of an inner product; that of x for the label along the gradient of
    |x| psi, with the factors of w and x divided by the root of the sum of their squares.
    Source: margin_inner_product_layer.cpp of wy1iu/sphereface and happynear/caffe-windows.
    """

    TYPE = "MarginInnerProduct"
    DIALECTS = ("caffe-windows",)
    PARAM = "margin_inner_product_param"
    BOTTOMS = (2, 2)
    TOPS = (2, 2)
    BLOBS = ("weight",)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self._axis = self.axis(self.p.axis, len(bottoms[0]), "margin_inner_product_param.axis")
        self.size = prod(bottoms[0][self._axis :])
        what = f"num_output is {self.p.num_output}"
        field = "margin_inner_product_param.num_output"
        self.check(self.p.num_output > 0, what, field=field, remedy="make it > 0")
        what = f"labels of shape {bottoms[1]} for items of shape {bottoms[0]}"
        fits = prod(bottoms[1]) == prod(bottoms[0][: self._axis])
        self.check(fits, what, field="bottom[1]", remedy="feed one label for each item")
        check_fillers(self, self.blob_shapes(bottoms))
        self.iteration = self.p.iteration

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(self.p.num_output, self.size)]

    def fillers(self) -> list[pb.FillerParameter]:
        return [self.p.weight_filler]

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(*bottoms[0][: self._axis], self.p.num_output), (1,)]

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.iteration += 1
        lowered = self.p.base * (1 + self.p.gamma * self.iteration) ** -self.p.power
        weight, factor = blobs[0], max(lowered, self.p.lambda_min)
        with torch.no_grad():
            weight.div_(weight.square().sum(1, keepdim=True).sqrt())
        x = bottoms[0].reshape(-1, self.size)
        index, _ = label_indices(self, bottoms[1].reshape(-1), self.p.num_output, field=self.PARAM)
        y = x @ weight.t()
        if self.p.type != MARGINS.SINGLE:
            y = self._with_margin(y, x, weight.detach()[index], index.unsqueeze(1), factor)
        return [y.reshape(self.reshape(bottoms)[0]), x.new_full((1,), factor)]

    def _with_margin(self, y: Tensor, x: Tensor, own: Tensor, index: Tensor, factor: float) -> Tensor:
        """The inner products y with that of the label, whose row of the weight is `own`, lowered."""
        still = x.detach()
        length = still.square().sum(1, keepdim=True).sqrt()
        cosine = (still * own).sum(1, keepdim=True) / length
        psi, of_weight, of_x = self._psi(cosine)
        of_x = -of_x / length
        size = (of_weight * of_weight + of_x * of_x).sqrt()
        slope = (of_weight * own + of_x * still) / size
        change = (x * (slope - own)).sum(1, keepdim=True) / (1 + factor)
        surrogate = y.scatter_add(1, index, change)
        value = (length * psi + factor * length * cosine) / (1 + factor)
        return straight_through()(surrogate, y.detach().scatter(1, index, value))

    def _psi(self, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """psi, and the factors of w and of -x / |x| in the gradient of |x| psi."""
        sign = c.sign()
        if self.p.type == MARGINS.DOUBLE:
            return 2 * sign * c**2 - 1, 4 * sign * c, 2 * sign * c**2 + 1
        if self.p.type == MARGINS.TRIPLE:
            outer = (c.abs() - 0.5).sign()
            turn = sign * (1 + outer) - 2
            return outer * (4 * c**3 - 3 * c) + turn, outer * (12 * c**2 - 3), 8 * outer * c**3 - turn
        outer = sign * (2 * c**2 - 1).sign()
        turn = 2 * sign + outer - 3
        slope, rest = outer * (32 * c**3 - 16 * c), outer * (24 * c**4 - 8 * c**2 - 1) - turn
        return outer * (8 * c**4 - 8 * c**2 + 1) + turn, slope, rest
