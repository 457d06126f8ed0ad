"""MVN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import append_axes, reduce

if TYPE_CHECKING:
    from torch import Tensor


@register
class MVN(Layer):
    """y = (x - mean) / (deviation + eps), or x - mean without normalize_variance (mvn_layer.cpp).

    Mean and deviation are those of each channel of each item, or of each item with across_channels. Bottoms have at
    most 4 axes and tops 4 (legacy accessors). Caffe's gradient, which is also that of this layer, is
    (d - mean(d) - y mean(d y)) / (deviation + eps), d = dy: exact for eps = 0, finite for constant inputs.
    In place, Caffe's own gradient is a different, wrong one.
    """

    TYPE = "MVN"
    HEEDLESS = True
    FROM_ONNX = True
    V1 = ("MVN",)
    PARAM = "mvn_param"
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        rank = len(bottoms[0])
        what = f"a bottom with {rank} axes; MVN takes at most 4"
        self.check(rank <= 4, what, field="bottom[0]", remedy="reshape it to four axes")
        self.dims = (1, 2, 3) if self.p.across_channels else (2, 3)
        self.normalize, self.eps = self.p.normalize_variance, self.p.eps

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [bottoms[0] + (1,) * (4 - len(bottoms[0]))]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        if x.ndim < 4:
            x = x.reshape(x.shape + (1,) * (4 - x.ndim))
        centred = x - x.mean(self.dims, keepdim=True)
        return [centred / self._divisor(centred) if self.normalize else centred]

    def _divisor(self, centred: Tensor) -> Tensor:
        """deviation + eps, whose gradient by x is y / count."""
        variance = centred.square().mean(self.dims, keepdim=True)
        divisor: Tensor = variance.detach().sqrt() + self.eps
        return divisor + (variance - variance.detach()) / (2 * divisor) if variance.requires_grad else divisor

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        shape = self.bottom_shapes[0]
        x = append_axes(g, bottoms[0], shape, 4 - len(shape))
        centred = g.op("Sub", [x, *reduce(g, "ReduceMean", x, self.dims, True)], 1 if self.normalize else tops)
        if not self.normalize:
            return
        variance = reduce(g, "ReduceMean", g.op("Mul", centred * 2)[0], self.dims, True)
        divisor = g.op("Add", [*g.op("Sqrt", variance), g.constant(np.array(self.eps, np.float32))])
        g.op("Div", centred + divisor, tops)
