"""Reduction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import reduce
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

TORCH: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    "SUM": lambda x, dims: x.sum(dims),
    "ASUM": lambda x, dims: x.abs().sum(dims),
    "SUMSQ": lambda x, dims: x.square().sum(dims),
    "MEAN": lambda x, dims: x.mean(dims),
}
ONNX = {"SUM": "ReduceSum", "ASUM": "ReduceL1", "SUMSQ": "ReduceSumSquare", "MEAN": "ReduceMean"}


@register
class Reduction(Layer):
    """coeff times the sum, sum of magnitudes, sum of squares or mean over `axis` and all after (reduction_layer.cpp).

    The top has the axes before `axis`; a sum over all is a scalar, shape (). The gradient of |x| at 0 is 0.
    """

    TYPE = "Reduction"
    FROM_ONNX = True
    PARAM = "reduction_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.first = self.axis(self.p.axis, len(bottoms[0]), "reduction_param.axis")
        self.dims = tuple(range(self.first, len(bottoms[0])))
        self.operation = pb.ReductionParameter.ReductionOp.Name(self.p.operation)
        self.coeff = self.p.coeff

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [bottoms[0][: self.first]]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        y = TORCH[self.operation](bottoms[0], self.dims)
        return [y if self.coeff == 1 else y * self.coeff]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        outputs: list[str] | int = tops if self.coeff == 1 else 1
        y = reduce(g, ONNX[self.operation], bottoms[0], self.dims, False, outputs)
        if self.coeff != 1:
            g.op("Mul", [*y, g.constant(np.array(self.coeff, np.float32))], tops)
