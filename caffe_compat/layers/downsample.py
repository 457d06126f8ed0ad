"""Downsample."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.layers.resample import rounded
from caffe_compat.onnx_forms import FLOAT

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]


@lru_cache(maxsize=64)
def weights(size: int, top: int) -> Floats:
    """How near each cell of the bottom is to each place of the top along an axis, (top, size)."""
    last, scale = np.float32(size - 1), np.float32(size - 1) / np.float32(top - 1)
    place = np.arange(top, dtype=np.float32) / np.float32(top - 1) * last
    cells, reach = np.arange(size), int(np.ceil(scale))
    near: Floats = np.maximum(0, 1 - np.abs(cells.astype(np.float32) - place[:, None]) / scale)
    return np.where(np.abs(cells - rounded(place)[:, None]) <= reach, near, 0).astype(np.float32)


@register
class Downsample(Layer):
    """Resizes to top_height x top_width, or to the size of bottom 1, past values that are NaN.

    With s = (W - 1) / (top W - 1), column j lies at x = j / (top W - 1) (W - 1), and a cell u columns away from x
    weighs max(0, 1 - u / s), if it is at most ceil(s) columns from the one that x is rounded to; rows alike. The top is
    the mean by the product of both weights over the cells that are numbers, and NaN where the others weigh more
    than half as much as these, or nothing weighs anything. A map that has that size already stays as it is.
    Source: downsample_layer.cu of lmb-freiburg/flownet2.
    """

    TYPE = "Downsample"
    DIALECTS = ("flownet2",)
    PARAM = "downsample_param"
    BOTTOMS = (1, 2)
    BACKWARD = False

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        for position, shape in enumerate(bottoms):
            what = f"bottom {position} has shape {shape}; it takes four axes"
            self.check(len(shape) == 4, what, field=f"bottom[{position}]", remedy="reshape it to (N, C, H, W)")
        size, top = bottoms[0][2:], bottoms[1][2:] if len(bottoms) == 2 else (self.p.top_height, self.p.top_width)
        what, remedy = f"a top of {top[0]} x {top[1]}", "state top_height and top_width, or give bottom 1"
        self.check(min(top) > 0, what, field="downsample_param", remedy=remedy)
        what = f"{size[0]} x {size[1]} to {top[0]} x {top[1]}; an axis of one cell has no steps"
        fine = size == top or min(size + top) > 1
        self.check(fine, what, field="downsample_param", remedy="let both sizes be at least 2 x 2, or pool instead")
        return [(*bottoms[0][:2], *top)]

    def propagates(self, bottom: int) -> bool:
        return False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        top, x = self.reshape(bottoms)[0], bottoms[0].detach()
        if top == x.shape:
            return [x.view_as(x)]
        rows, columns = (torch.from_numpy(weights(n, m)).to(x) for n, m in zip(x.shape[2:], top[2:], strict=True))
        unknown = x.isnan()
        values = rows @ x.masked_fill(unknown, 0) @ columns.T
        known, lost = (rows @ part.to(x) @ columns.T for part in (~unknown, unknown))
        return [(values / known).masked_fill(lost / known > 0.5, torch.nan)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        size, top = self.bottom_shapes[0][2:], self.top_shapes_built[0][2:]
        if size == top:
            g.op("Identity", bottoms[:1], tops)
            return
        near = (weights(n, m) for n, m in zip(size, top, strict=True))
        rows, columns = (g.constant(np.ascontiguousarray(part)) for part in (next(near), next(near).T))
        zero, half, nan = (g.constant(np.array(value, np.float32)) for value in (0, 0.5, np.nan))
        unknown = g.op("IsNaN", bottoms[:1])
        parts = [*g.op("Where", [*unknown, zero, bottoms[0]])]
        parts += [*g.op("Cast", g.op("Not", unknown), to=FLOAT), *g.op("Cast", unknown, to=FLOAT)]
        values, known, lost = (g.op("MatMul", [*g.op("MatMul", [rows, part]), columns])[0] for part in parts)
        spoilt = g.op("Greater", [*g.op("Div", [lost, known]), half])
        g.op("Where", [*spoilt, nan, *g.op("Div", [values, known])], tops)
