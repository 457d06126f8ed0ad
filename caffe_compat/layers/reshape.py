"""Reshape."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.onnx_forms import reshape

if TYPE_CHECKING:
    from torch import Tensor


@register
class Reshape(Layer):
    """`num_axes` axes of the bottom from `axis` on (by default all) become `shape` (reshape_layer.cpp).

    In `shape`, 0 copies the size that the bottom has at that place, and one -1 takes what remains. A negative `axis`
    counts from behind the last: -1 appends. Caffe refuses to do it in place.
    """

    TYPE = "Reshape"
    FROM_ONNX = True
    PARAM = "reshape_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        rank, axis, count = len(bottoms[0]), self.p.axis, self.p.num_axes
        self.dims = list(self.p.shape.dim)
        field = "reshape_param.shape"
        self.check(self.dims.count(-1) <= 1, "more than one -1 in shape", field=field, remedy="let one size be -1")
        what = f"shape {self.dims}; sizes must be >= -1"
        self.check(min(self.dims, default=0) >= -1, what, field=field, remedy="state sizes, 0 to copy, -1 to infer")
        self.first = axis if axis >= 0 else rank + 1 + axis
        what = f"axis {axis} is out of range for a bottom with {rank} axes"
        remedy = f"use {-rank - 1} to {rank}"
        self.check(0 <= self.first <= rank, what, field="reshape_param.axis", remedy=remedy)
        self.end = rank if count == -1 else self.first + count
        what = f"num_axes {count} from axis {self.first} of a bottom with {rank} axes"
        fits = count >= -1 and self.end <= rank
        self.check(fits, what, field="reshape_param.num_axes", remedy=f"use -1 to {rank - self.first}")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        bottom, field = bottoms[0], "reshape_param.shape"
        top = [*bottom[: self.first], *self.dims, *bottom[self.end :]]
        for place, dim in enumerate(self.dims, self.first):
            if dim == 0:
                what = f"shape has 0 for axis {place}, which a bottom with {len(bottom)} axes lacks"
                self.check(place < len(bottom), what, field=field, remedy="state the size")
                top[place] = bottom[place]
        what = f"the bottom {bottom} holds no values"
        self.check(prod(bottom) > 0, what, field="bottom[0]", remedy="feed at least one")
        count, remedy = prod(bottom), "let the product of the sizes be the bottom's count"
        if -1 in self.dims:
            known = -prod(top)
            what = f"the bottom has {count} values, which is no multiple of the {known} that shape leaves for -1"
            self.check(known > 0 and count % known == 0, what, field=field, remedy=remedy)
            top[self.first + self.dims.index(-1)] = count // known
        what = f"the top {tuple(top)} has {prod(top)} values, the bottom {bottom} has {count}"
        self.check(prod(top) == count, what, field=field, remedy=remedy)
        return [tuple(top)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [bottoms[0].reshape(self.reshape(bottoms)[0])]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        x = bottoms[0]
        before, behind = range(self.first), range(self.end, len(self.bottom_shapes[0]))
        dims = [str(dim) if dim else f"{x}.shape[{axis}]" for axis, dim in enumerate(self.dims, self.first)]
        sizes = [*(f"{x}.shape[{axis}]" for axis in before), *dims, *(f"{x}.shape[{axis}]" for axis in behind)]
        return f"{x}.reshape({', '.join(sizes)})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        after = self.bottom_shapes[0][self.end :]
        if self.end == 0 and after:  # new axes before the batch, of product 1
            shape = [*self.top_shapes_built[0][: len(self.dims)], -1, *after[1:]]
        else:
            shape = [*(0,) * self.first, *self.dims, *after]
        reshape(g, bottoms[0], shape, tops)
