"""Resample."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import reshape
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Taps(NamedTuple):
    """Where values along an axis come from, (out, taps): cells, whether they exist, and their shares."""

    cells: Ints
    exist: NDArray[np.bool_]
    shares: Floats

    def matrix(self, size: int) -> Floats:
        """(out, size)."""
        out = np.zeros((len(self.cells), size), np.float32)
        rows = np.broadcast_to(np.arange(len(out))[:, None], self.cells.shape)
        np.add.at(out, (rows[self.exist], self.cells[self.exist]), self.shares[self.exist])
        return out


def places(out: int, own: np.float32, other: np.float32) -> Floats:
    """Where top cells lie among the bottom's; half of the other axis' factor is the fork's, not a slip here."""
    x: Floats = np.arange(out, dtype=np.float32) * own + other / np.float32(2) - np.float32(0.5)
    return x


def rounded(x: Floats) -> Ints:
    """C's round: halves go away from zero."""
    exact = x.astype(np.float64)
    return (np.sign(exact) * np.floor(np.abs(exact) + 0.5)).astype(np.int64)


def triangle(x: Floats) -> Floats:
    y: Floats = np.maximum(np.float32(1) - np.abs(x), np.float32(0))
    return y


def bicubic(x: Floats) -> Floats:
    x = np.abs(x)
    near = x * x * (1.5 * x - 2.5) + 1
    far = x * (x * (-0.5 * x + 2.5) - 4) + 2
    y: Floats = np.where(x <= 1, near, np.where(x < 2, far, np.float32(0)))
    return y


FILTERS = {pb.ResampleParameter.LINEAR: (triangle, 2), pb.ResampleParameter.CUBIC: (bicubic, 4)}
"""Type -> filter, and its width."""


def factors(size: Shape, top: Shape) -> tuple[np.float32, np.float32]:
    """fy and fx."""
    fy, fx = (np.float32(n) / np.float32(m) for n, m in zip(size, top, strict=True))
    return fy, fx


@lru_cache(maxsize=64)
def nearest(size: Shape, top: Shape) -> Ints:
    """The bottom's cell y W + x for each of the top's."""
    fy, fx = factors(size, top)
    rows, columns = rounded(places(top[0], fy, fx)), rounded(places(top[1], fx, fy))
    return (rows[:, None] * size[1] + columns).ravel()


@lru_cache(maxsize=64)
def filter_taps(size: Shape, top: Shape, kind: int, antialias: bool) -> tuple[Taps, Taps]:
    """For rows and for columns; `kind` is one of FILTERS."""
    fy, fx = factors(size, top)
    wide = antialias and bool(max(fy, fx) > 1)
    rows = _axis_taps(size[0], places(top[0], fy, fx), fy if wide else np.float32(1), fy, kind)
    return rows, _axis_taps(size[1], places(top[1], fx, fy), fx if wide else np.float32(1), fx, kind)


def _axis_taps(size: int, place: Floats, width: np.float32, factor: np.float32, kind: int) -> Taps:
    shape, support = FILTERS[kind]  # type: ignore[index]
    narrow = np.float32(1) / width
    reach = 2 if factor < 1 else int(np.ceil(np.float32(support) / narrow))
    cells = rounded(place)[:, None] + np.arange(-reach, reach + 1)
    exist = (cells >= 0) & (cells < size)
    weights = np.where(exist, shape(narrow * (place[:, None] - cells.astype(np.float32))), 0)
    sums = weights.sum(1, keepdims=True)
    shares = np.divide(weights, sums, out=np.zeros_like(weights), where=sums != 0)
    return Taps(cells.clip(0, size - 1), exist, shares.astype(np.float32))


@register
class Resample(Layer):
    """Resizes to height x width, or to the size of bottom 1 (resample_layer.cu of lmb-freiburg/flownet2).

    With fx = W / top W and fy = H / top H, top cell (i, j) lies at y = i fy + fx/2 - 1/2, x = j fx + fy/2 - 1/2: the
    halves are exchanged. NEAREST: the cell at the rounded place, halves away from zero. LINEAR and CUBIC (a = -1/2):
    the mean of the cells around, weighted by the filter along both axes; filters are f times as wide when the bottom is
    larger along either axis and `antialias` is set. Neither fork has a backward pass; the gradient is the derivative.
    """

    TYPE = "Resample"
    DIALECTS = ("synopsys",)
    PARAM = "resample_param"
    BOTTOMS = (1, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = "type AREA, which the fork has no code for"
        known = self.p.type in (pb.ResampleParameter.NEAREST, *FILTERS)
        self.check(known, what, field="resample_param.type", remedy="use NEAREST, LINEAR or CUBIC")

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        for position, shape in enumerate(bottoms):
            what = f"bottom {position} has shape {shape}; it takes four axes"
            self.check(len(shape) == 4, what, field=f"bottom[{position}]", remedy="reshape it to (N, C, H, W)")
        size = bottoms[1][2:] if len(bottoms) == 2 else (self.p.height, self.p.width)
        what = f"a top of {size[0]} x {size[1]}"
        self.check(min(size) > 0, what, field="resample_param", remedy="state height and width, or give bottom 1")
        if self.p.type == pb.ResampleParameter.NEAREST:
            self._check_inside(bottoms[0][2:], size)
        return [(*bottoms[0][:2], *size)]

    def _check_inside(self, size: Shape, top: Shape) -> None:
        cells = nearest(size, top)
        what = f"resizing {size[0]} x {size[1]} to {top[0]} x {top[1]} reads outside the map"
        inside = bool(cells.min() >= 0 and cells.max() < size[0] * size[1])
        self.check(inside, what, field="resample_param", remedy="scale both axes alike, or use LINEAR")

    def _taps(self, size: Shape, top: Shape) -> tuple[Taps, Taps]:
        return filter_taps(size, top, self.p.type, self.p.antialias)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        top = self.reshape(bottoms)[0]
        x, size = bottoms[0], tuple(bottoms[0].shape[2:])
        if self.p.type == pb.ResampleParameter.NEAREST:
            cells = torch.from_numpy(nearest(size, top[2:])).to(x.device)
            return [x.flatten(2).index_select(2, cells).reshape(top)]
        rows, columns = self._taps(size, top[2:])
        return [_weighted(_weighted(x, rows, 2), columns, 3)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        size, top = self.bottom_shapes[0][2:], self.top_shapes_built[0][2:]
        if self.p.type == pb.ResampleParameter.NEAREST:
            cells = g.constant(nearest(size, top))
            reshape(g, g.op("Gather", [*reshape(g, bottoms[0], [0, 0, -1]), cells], axis=2)[0], [0, 0, *top], tops)
            return
        rows, columns = (taps.matrix(n) for taps, n in zip(self._taps(size, top), size, strict=True))
        lines = g.op("MatMul", [g.constant(rows), bottoms[0]])
        g.op("MatMul", [*lines, g.constant(np.ascontiguousarray(columns.T))], tops)


def _weighted(x: Tensor, taps: Taps, axis: int) -> Tensor:
    """Weighted sums of cells along an axis of (N, C, H, W)."""
    import torch

    shape = [-1 if i == axis else 1 for i in range(4)]
    total = x.new_zeros(())
    for cells, exist, shares in zip(*(part.T for part in taps), strict=True):
        values = x.index_select(axis, torch.from_numpy(np.ascontiguousarray(cells)).to(x.device))
        there = torch.from_numpy(np.ascontiguousarray(exist)).to(x.device).view(shape)
        share = torch.from_numpy(np.ascontiguousarray(shares)).to(x).view(shape)
        total = total + (values * share).where(there, 0)
    return total
