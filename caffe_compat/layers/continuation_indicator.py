"""ContinuationIndicator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class ContinuationIndicator(Layer):
    """(time_step, batch_size) of 1, and 0 in the first row: where sequences go on, for LSTM and RNN layers.

    Source: continuation_indicator_layer.cpp of yalecyu/crnn.caffe.
    """

    TYPE = "ContinuationIndicator"
    DIALECTS = ("crnn",)
    PARAM = "continuation_indicator_param"
    BOTTOMS = (0, 0)
    BACKWARD = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        for name in ("batch_size", "time_step"):
            value = getattr(self.p, name)
            field = f"continuation_indicator_param.{name}"
            self.check(value > 0, f"{name} is 0", field=field, remedy="state how many")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(self.p.time_step, self.p.batch_size)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        going_on = torch.ones(self.top_shapes([])[0])
        going_on[0] = 0
        return [going_on]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        rows = np.ones((self.p.time_step, 1), np.float32)
        rows[0] = 0
        size = g.constant(np.array(self.top_shapes([])[0], np.int64))
        g.op("Expand", [g.constant(rows), size], tops)
