"""Noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Noise(Layer):
    """TRAIN: y = x + noise; TEST: y = x (noise_layer.cpp of happynear/caffe-windows).

    The noise is normal, with mean `bias` and the deviation gaussian_std times the root of the mean square of x; or, if
    that is not stated, uniform from bias - uniform_range to bias + uniform_range. Without either there is none.
    """

    TYPE = "Noise"
    DIALECTS = ("caffe-windows",)
    PARAM = "noise_param"
    INPLACE = True

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        x, p = bottoms[0], self.p
        if self.phase == "TEST" or not (self.has("gaussian_std") or self.has("uniform_range")):
            return [x.view_as(x)]
        if self.has("gaussian_std"):
            size = x.detach().square().mean().sqrt()
            return [x + torch.randn_like(x) * (size * p.gaussian_std) + p.bias]
        return [x + torch.empty_like(x).uniform_(p.bias - p.uniform_range, p.bias + p.uniform_range)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if self.phase != "TEST":
            super().to_onnx(g, bottoms, tops, blobs)
        g.op("Identity", bottoms, tops)
