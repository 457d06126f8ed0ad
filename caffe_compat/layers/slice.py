"""Slice."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.layers.concat import joined_axis

if TYPE_CHECKING:
    from torch import Tensor


@register
class Slice(Layer):
    """The bottom cut along `axis` (1 by default), equally or before each slice_point (slice_layer.cpp).

    Older nets say slice_dim, which is not negative.
    """

    TYPE = "Slice"
    FROM_ONNX = True
    V1 = ("SLICE",)
    PARAM = "slice_param"
    TOPS = (1, None)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.dim = joined_axis(self, "slice_dim", len(bottoms[0]))
        self.points = list(self.p.slice_point)
        field = "slice_param.slice_point"
        what = f"{len(self.points)} slice_point value(s) for {self.tops} tops"
        fits = not self.points or len(self.points) == self.tops - 1
        self.check(fits, what, field=field, remedy=f"state none, or {self.tops - 1}")
        rising = all(a < b for a, b in pairwise([0, *self.points]))
        what = f"slice_point {self.points}; they must rise and be > 0"
        self.check(rising, what, field=field, remedy="state them in rising order")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        bottom = bottoms[0]
        return [(*bottom[: self.dim], size, *bottom[self.dim + 1 :]) for size in self._sizes(bottom[self.dim])]

    def _sizes(self, total: int) -> list[int]:
        """Sizes of the tops along the axis."""
        if not self.points:
            what = f"{total} along axis {self.dim} cannot be cut into {self.tops} equal tops"
            self.check(total % self.tops == 0, what, field="slice_param", remedy="state slice_point")
            return [total // self.tops] * self.tops
        what = f"slice_point {self.points} for {total} along axis {self.dim}"
        fits = self.points[-1] <= total and self.tops <= total
        self.check(fits, what, field="slice_param.slice_point", remedy=f"cut below {total}")
        return [b - a for a, b in pairwise([0, *self.points, total])]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        self.reshape(bottoms)
        return list(bottoms[0].tensor_split(self.points or self.tops, self.dim))

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        if self.tops == 1:
            return bottoms[0]
        return f"torch.tensor_split({bottoms[0]}, {self.points or self.tops}, dim={self.dim})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if self.tops == 1:
            g.op("Identity", bottoms, tops)
        else:
            sizes = self._sizes(self.bottom_shapes[0][self.dim])
            g.op("Split", [*bottoms, g.constant(np.array(sizes, np.int64))], tops, axis=self.dim)
