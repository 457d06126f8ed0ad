"""Pad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Pad(Layer):
    """`constant_values` before and after each axis: `paddings` holds before, after, axis by axis.

    The fork has no backward pass; the gradient is the derivative. Source: pad_layer.cpp of synopsys-caffe.
    """

    TYPE = "Pad"
    DIALECTS = ("synopsys",)
    PARAM = "pad_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.pads = list(self.p.paddings)
        rank = len(bottoms[0])
        what = f"{len(self.pads)} paddings for a bottom with {rank} axes"
        field = "pad_param.paddings[0]" if self.pads else "pad_param"
        self.check(len(self.pads) == 2 * rank, what, field=field, remedy=f"state {2 * rank}: before, after, per axis")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        pairs = zip(bottoms[0], self.pads[::2], self.pads[1::2], strict=True)
        return [tuple(size + before + after for size, before, after in pairs)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        from torch.nn.functional import pad

        pairs = zip(self.pads[::2], self.pads[1::2], strict=True)
        backwards = [size for pair in reversed(list(pairs)) for size in pair]  # torch starts at the last axis
        return [pad(bottoms[0], backwards, value=self.p.constant_values)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        pads = g.constant(np.array(self.pads[::2] + self.pads[1::2], np.int64))
        g.op("Pad", [bottoms[0], pads, g.constant(np.array(self.p.constant_values, np.float32))], tops)
