"""ELU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.python_forms import call, number

if TYPE_CHECKING:
    from torch import Tensor


@register
class ELU(Layer):
    """y = x for x > 0, else alpha (exp(x) - 1); the gradient at 0 is alpha (elu_layer.cpp)."""

    TYPE = "ELU"
    FROM_ONNX = True
    PARAM = "elu_param"
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.alpha = self.p.alpha

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        return [torch.nn.functional.elu(bottoms[0], self.alpha)]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        return call("F.elu", bottoms[0], alpha=None if self.alpha == 1 else number(self.alpha))

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        g.op("Elu", bottoms, tops, alpha=self.alpha)
