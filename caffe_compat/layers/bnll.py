"""BNLL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class BNLL(Layer):
    """y = log(1 + exp(x)), computed without overflow; dy/dx = e / (e + 1), e = exp(min(x, 50)) (bnll_layer.cpp).

    In place, Caffe's backward pass takes y for x; here the gradient is the true one.
    """

    TYPE = "BNLL"
    V1 = ("BNLL",)
    V0 = ("bnll",)
    PROFILES = ("bvlc", "dec2013")
    INPLACE = True

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        return [torch.nn.functional.softplus(bottoms[0], threshold=50)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        g.op("Softplus", bottoms, tops)
