"""Silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Silence(Layer):
    """Takes bottoms so that they are no outputs of the net; their gradient is 0 (silence_layer.cpp)."""

    TYPE = "Silence"
    FROM_ONNX = True
    V1 = ("SILENCE",)
    BOTTOMS = (1, None)
    TOPS = (0, 0)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return []

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return []

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        return "()"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        """Nothing to compute."""
