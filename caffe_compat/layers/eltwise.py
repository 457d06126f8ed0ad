"""Eltwise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.layers.straight_through import nan_at_zero
from caffe_compat.python_forms import call, number
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class Eltwise(Layer):
    """Sum (each bottom times its coeff, 1 by default), product or maximum of bottoms of one shape (eltwise_layer.cpp).

    MAX: the gradient goes to one bottom. Of bottoms 0 and 1, the latter has it when they are equal; a later bottom has
    it only when it is greater than all before (the rule of Caffe's CPU code).
    PROD: the gradient is dy times the product of the others. With stable_prod_grad: false Caffe divides the product by
    the operand instead, so the gradient is NaN where that is 0.
    In place Caffe clears bottom 0 before it reads it, except for PROD, so the others are refused.
    """

    TYPE = "Eltwise"
    FROM_ONNX = True
    V1 = ("ELTWISE",)
    PARAM = "eltwise_param"
    BOTTOMS = (2, None)
    INPLACE = True
    OUTPUT_FREE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.operation = pb.EltwiseParameter.EltwiseOp.Name(self.p.operation)
        coeff = list(self.p.coeff)
        what = f"{len(coeff)} coeff value(s) for {len(bottoms)} bottoms"
        fits = len(coeff) in (0, len(bottoms))
        self.check(fits, what, field="eltwise_param.coeff", remedy="state none, or one per bottom")
        what = "coeff with operation PROD; coefficients are only for SUM"
        self.check(not coeff or self.operation != "PROD", what, field="eltwise_param.coeff", remedy="remove coeff")
        what = f"Eltwise {self.operation} in place overwrites bottom 0 before it is read"
        inplace = set(self.param.top) & set(self.param.bottom)
        self.check(not inplace or self.operation == "PROD", what, field="top", remedy="rename the top")
        self.coeff = coeff or [1.0] * len(bottoms)
        self.combine = {"PROD": _product, "MAX": _maximum, "SUM": self._sum}[self.operation]
        if self.operation == "SUM" and self.coeff == [1.0, 1.0]:
            self.overwrite, self.symmetric = self._add, True

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        for index, bottom in enumerate(bottoms):
            what = f"bottom {index} has shape {bottom}, bottom 0 {bottoms[0]}; they must be equal"
            self.check(bottom == bottoms[0], what, field=f"bottom[{index}]", remedy="make the shapes equal")
        return [bottoms[0]]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        self.reshape(bottoms)
        if self.operation == "PROD" and not self.p.stable_prod_grad:
            bottoms = [nan_at_zero()(bottom) for bottom in bottoms]
        return [self.combine(bottoms)]

    def _sum(self, bottoms: list[Tensor]) -> Tensor:
        import torch

        total = bottoms[0] if self.coeff[0] == 1 else bottoms[0] * self.coeff[0]
        for bottom, coeff in zip(bottoms[1:], self.coeff[1:], strict=True):
            total = torch.add(total, bottom, alpha=coeff)
        return total

    def _add(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        self.reshape(bottoms)
        total, other = bottoms
        return [total.add_(other) if total.dtype == other.dtype else total + other]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        if self.operation == "PROD":
            return " * ".join(bottoms)
        if self.operation == "MAX":
            return call(w.part("maximum"), *bottoms)
        total = bottoms[0] if self.coeff[0] == 1 else f"{bottoms[0]} * {number(self.coeff[0])}"
        for bottom, coeff in zip(bottoms[1:], self.coeff[1:], strict=True):
            total = f"{total} + {bottom}" if coeff == 1 else f"torch.add({total}, {bottom}, alpha={number(coeff)})"
        return total

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if self.operation == "PROD":
            x = bottoms[0]
            for index, bottom in enumerate(bottoms[1:], 2):
                x = g.op("Mul", [x, bottom], tops if index == len(bottoms) else 1)[0]
        elif self.operation == "MAX":
            g.op("Max", bottoms, tops)
        else:
            g.op("Sum", [self._weighted(g, *pair) for pair in zip(bottoms, self.coeff, strict=True)], tops)

    def _weighted(self, g: OnnxWriter, bottom: str, coeff: float) -> str:
        return bottom if coeff == 1 else g.op("Mul", [bottom, g.constant(np.array(coeff, np.float32))])[0]


@register
class EltwiseFlownet2(Eltwise):
    """Eltwise that also takes one bottom, for its coeff (eltwise_layer.hpp of lmb-freiburg/flownet2)."""

    TYPE = "Eltwise"
    V1 = ()  # type: ignore[assignment]
    DIALECTS = ("flownet2",)
    BOTTOMS = (1, None)
    OUTPUT_FREE = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        what = f"operation {self.operation} of one bottom"
        fine = self.operation == "SUM" or len(bottoms) > 1
        self.check(fine, what, field="eltwise_param.operation", remedy="use SUM, or list at least 2 bottoms")


def _product(bottoms: list[Tensor]) -> Tensor:
    import torch

    return reduce(torch.mul, bottoms)


def _maximum(bottoms: list[Tensor]) -> Tensor:
    import torch

    a, b, *others = bottoms
    top = torch.where(a > b, a, b)
    for other in others:
        top = torch.where(other > top, other, top)
    return top
