"""ArgMax."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import FLOAT, reduce, reshape

if TYPE_CHECKING:
    from torch import Tensor


@register
class ArgMax(Layer):
    """Indices, as floats, of the top_k largest values in falling order; of equals the last first (argmax_layer.cpp).

    With `axis`: along it, and with out_max_val the values instead of the indices; the top is the bottom with top_k for
    that axis. Without: over each whole item; the top is (N, 1, top_k), with out_max_val (N, 2, top_k), indices before
    values, and has as many axes as the bottom, at least 3. There is no backward pass.
    """

    TYPE = "ArgMax"
    V1 = ("ARGMAX",)
    PARAM = "argmax_param"
    BACKWARD = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        bottom, self.top_k = bottoms[0], self.p.top_k
        self.check(self.top_k >= 1, "top_k 0", field="argmax_param.top_k", remedy="use at least 1")
        self.check(len(bottom) >= 1, "a bottom without axes", field="bottom[0]", remedy="reshape it to (N, values)")
        self.whole = not self.has("axis")
        self.dim = 1 if self.whole else self.axis(self.p.axis, len(bottom), "argmax_param.axis")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        bottom = bottoms[0]
        size = prod(bottom[1:]) if self.whole else bottom[self.dim]
        what = f"top_k {self.top_k} of {size} values"
        self.check(self.top_k <= size, what, field="argmax_param.top_k", remedy=f"use at most {size}")
        if not self.whole:
            return [(*bottom[: self.dim], self.top_k, *bottom[self.dim + 1 :])]
        return [(bottom[0], 2 if self.p.out_max_val else 1, self.top_k, *(1,) * (len(bottom) - 3))]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        x = bottoms[0].detach()
        shape = self.reshape(bottoms)[0]
        x = x.reshape(shape[0], -1) if self.whole else x
        values, indices = self._largest(x.flip(self.dim))
        indices = (x.shape[self.dim] - 1 - indices).to(x.dtype)
        if not self.whole:
            return [values if self.p.out_max_val else indices]
        return [(torch.stack((indices, values), 1) if self.p.out_max_val else indices).reshape(shape)]

    def _largest(self, flipped: Tensor) -> tuple[Tensor, Tensor]:
        """The largest values and their first places."""
        if self.top_k == 1:
            place = flipped.argmax(self.dim, keepdim=True)
            return flipped.gather(self.dim, place), place
        values, places = flipped.sort(dim=self.dim, descending=True, stable=True)
        return values.narrow(self.dim, 0, self.top_k), places.narrow(self.dim, 0, self.top_k)

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        x = reshape(g, bottoms[0], (0, -1))[0] if self.whole else bottoms[0]
        values, indices = self._largest_to_onnx(g, x)
        indices = g.op("Cast", [indices], to=FLOAT)[0]
        if not self.whole:
            g.op("Identity", [values if self.p.out_max_val else indices], tops)
            return
        shape = (0, *self.top_shapes_built[0][1:])
        if self.p.out_max_val:
            indices = g.op("Concat", [indices, values], axis=1)[0]
        reshape(g, indices, shape, tops)

    def _largest_to_onnx(self, g: OnnxWriter, x: str) -> tuple[str, str]:
        """Names of values and indices. TopK prefers the first of equal values, so it sees them in reverse order."""
        if self.top_k == 1:
            values = reduce(g, "ReduceMax", x, [self.dim], True)[0]
            return values, g.op("ArgMax", [x], axis=self.dim, keepdims=1, select_last_index=1)[0]
        axis, last = (g.constant(np.array([value], np.int64)) for value in (self.dim, -1))
        end = g.constant(np.array([np.iinfo(np.int64).min], np.int64))
        reverse = g.op("Slice", [x, last, end, axis, last])
        values, places = g.op("TopK", [*reverse, g.constant(np.array([self.top_k], np.int64))], 2, axis=self.dim)
        size = g.op("Gather", [*g.op("Shape", [x]), axis])
        return values, g.op("Sub", [*g.op("Add", [*size, last]), places])[0]
