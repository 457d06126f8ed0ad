"""ReverseTime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import INT64, reshape

if TYPE_CHECKING:
    from torch import Tensor


@register
class ReverseTime(Layer):
    """Turns the first `length` steps of each sequence around (reverse_time_layer.cpp of senlinuc/caffe_ocr).

    Bottoms: sequences (T, N, ...), lengths (N,), without gradient. The steps behind a sequence's length are copied
    with `copy_remaining`, and are 0 without.
    """

    TYPE = "ReverseTime"
    DIALECTS = ("caffe-ocr",)
    PARAM = "reverse_time_param"
    BOTTOMS = (2, 2)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        data, lengths = bottoms
        what = f"lengths of shape {lengths} for sequences of shape {data}"
        fine = len(data) >= 2 and lengths == (data[1],)
        self.check(fine, what, field="bottom[1]", remedy="feed sequences (T, N, ...) and one length each, (N,)")
        return [data]

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        x, lengths = bottoms[0], bottoms[1].detach().to(torch.int64)
        self._check_lengths(lengths, len(x))
        step = torch.arange(len(x), device=x.device).unsqueeze(1)  # (T, 1)
        inside = step < lengths
        source = (lengths - 1 - step).where(inside, step)  # (T, N)
        tail = [1] * (x.dim() - 2)
        y = x.gather(0, source.view(*source.shape, *tail).expand(x.shape))
        return [y if self.p.copy_remaining else y.where(inside.view(*inside.shape, *tail), 0)]

    def _check_lengths(self, lengths: Tensor, steps: int) -> None:
        import torch

        if torch.compiler.is_compiling() or not lengths.numel():
            return
        low, high = map(int, torch.aminmax(lengths))
        what = f"a sequence of length {low if low < 0 else high}; there are {steps} steps"
        self.check(low >= 0 and high <= steps, what, field="bottom[1]", remedy=f"feed lengths 0 to {steps}")

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        shape = self.bottom_shapes[0]
        lengths = g.op("Cast", [bottoms[1]], to=INT64)
        if self.p.copy_remaining:
            g.op("ReverseSequence", [bottoms[0], *lengths], tops, batch_axis=1, time_axis=0)
            return
        y = g.op("ReverseSequence", [bottoms[0], *lengths], batch_axis=1, time_axis=0)
        step = g.constant(np.arange(shape[0]).reshape(-1, 1))
        inside = reshape(g, g.op("Less", [step, *lengths])[0], [0, 0] + [1] * (len(shape) - 2))
        g.op("Where", [*inside, *y, g.constant(np.array(0, np.float32))], tops)
