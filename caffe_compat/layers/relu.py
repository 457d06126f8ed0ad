"""ReLU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.python_forms import number

if TYPE_CHECKING:
    from torch import Tensor


@register
class ReLU(Layer):
    """y = max(x, 0) + negative_slope min(x, 0); the gradient at 0 is negative_slope (relu_layer.cpp)."""

    TYPE = "ReLU"
    FROM_ONNX = True
    V1 = ("RELU",)
    V0 = ("relu",)
    PARAM = "relu_param"
    PROFILES = ("bvlc", "dec2013")
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.slope = self.p.negative_slope

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        x = bottoms[0]
        return [torch.nn.functional.leaky_relu(x, self.slope) if self.slope else x.relu()]

    def overwrite(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:  # type: ignore[override]
        if not self.slope:
            return [bottoms[0].relu_()]
        from torch.nn.functional import leaky_relu_

        return [leaky_relu_(bottoms[0], self.slope)]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        return f"F.leaky_relu({bottoms[0]}, {number(self.slope)})" if self.slope else f"F.relu({bottoms[0]})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if self.slope:
            g.op("LeakyRelu", bottoms, tops, alpha=self.slope)
        else:
            g.op("Relu", bottoms, tops)


@register
class ReLURecover(ReLU):
    """ReLU that brings its bottom back for the layer before (GuanshuoXu/caffe_deep_learning_for_steganalysis).

    There BNConv works in place and reads its own top again. Source: relu_recover_layer.cu.
    """

    TYPE = "ReLURecover"
    V1 = ()  # type: ignore[assignment]
    V0 = ()  # type: ignore[assignment]
    PROFILES = ("bvlc",)  # type: ignore[assignment]
    DIALECTS = ("steganalysis",)
