"""BNLL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class BNLL(Layer):
    """y = log(1 + exp(x)), computed without overflow; dy/dx = e / (e + 1), e = exp(min(x, 50)) (bnll_layer.cpp).

    In place, Caffe's backward pass takes y for x. Under dec2013 this layer does so too; under bvlc its gradient is the
    true one.
    """

    TYPE = "BNLL"
    FROM_ONNX = True
    V1 = ("BNLL",)
    V0 = ("bnll",)
    PROFILES = ("bvlc", "dec2013")
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.takes_top = self.context.profile == "dec2013" and self.param.top[0] == self.param.bottom[0]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        x = bottoms[0]
        y: Tensor = torch.nn.functional.softplus(x, threshold=50)
        if self.takes_top and x.requires_grad:
            y = y.detach() + (x - x.detach()) * y.detach().sigmoid()  # adds 0
        return [y]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        return f"F.softplus({bottoms[0]}, threshold=50)"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        g.op("Softplus", bottoms, tops)
