"""Insanity."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Insanity(Layer):
    """y = x where x > 0, else x / a. TRAIN: a is drawn from lb to ub; TEST: a = (ub - lb) / (log|ub| - log|lb|).

    This is the randomised leaky ReLU (insanity_layer.cpp of happynear/caffe-windows).
    """

    TYPE = "Insanity"
    DIALECTS = ("caffe-windows",)
    PARAM = "insanity_param"
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = f"the bottom has {len(bottoms[0])} axes; at least 2 are needed"
        self.check(len(bottoms[0]) >= 2, what, field="bottom[0]", remedy="give it a blob with channels")
        low, high = self.p.lb, self.p.ub
        self.check(high > low, f"ub {high:g} <= lb {low:g}", field="insanity_param.ub", remedy="raise it")
        what = f"lb {low:g}, ub {high:g}; neither may be 0"
        self.check(low * high != 0, what, field="insanity_param.lb", remedy="use other bounds")
        distance = log(abs(high)) - log(abs(low))
        self.slope = distance / (high - low)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        x = bottoms[0]
        if self.phase == "TEST":
            return [torch.nn.functional.leaky_relu(x, self.slope)]
        divisor = torch.empty_like(x).uniform_(self.p.lb, self.p.ub)
        return [x.where(x > 0, x / divisor)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if self.phase != "TEST":
            super().to_onnx(g, bottoms, tops, blobs)
        g.op("LeakyRelu", bottoms, tops, alpha=self.slope)
