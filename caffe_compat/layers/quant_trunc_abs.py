"""QuantTruncAbs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class QuantTruncAbs(Layer):
    """Rounded (QUANT, halves away from 0), cut off at `threshold` (TRUNC) and absolute (ABS) values, as `process` says.

    It works in place alone, and has no gradient. Source: quant_trunc_abs_layer.cu of
    GuanshuoXu/caffe_deep_learning_for_steganalysis.
    """

    TYPE = "QuantTruncAbs"
    DIALECTS = ("steganalysis",)
    PARAM = "quant_trunc_abs_param"
    INPLACE = True
    BACKWARD = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = f"the top is not the bottom; {self.TYPE} works in place"
        inside = list(self.param.top) == list(self.param.bottom)
        self.check(inside, what, field="top[0]", remedy="give it the bottom's name")
        self.process = pb.QuantTruncAbsParameter.ProcessMethod.Name(self.p.process)

    def propagates(self, bottom: int) -> bool:
        return False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0].detach()
        sign, size = x.sign(), x.abs()
        if "QUANT" in self.process:
            whole = size.trunc()
            size = whole + (size - whole >= 0.5)
        if "TRUNC" in self.process:
            size = size.clamp(max=self.p.threshold)
        return [size if "ABS" in self.process else size * sign]
