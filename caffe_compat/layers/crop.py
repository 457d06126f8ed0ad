"""Crop: a part of one blob, of another blob's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.python_forms import call

if TYPE_CHECKING:
    from torch import Tensor


@register
class Crop(Layer):
    """The part of bottom 0 that starts at `offset` and has bottom 1's sizes from `axis` on (crop_layer.cpp).

    `offset` is given once for all cropped axes, or once for each; without it 0. Bottom 1 gives sizes only: its values
    do not matter and it gets no gradient.
    """

    TYPE = "Crop"
    PARAM = "crop_param"
    BOTTOMS = (2, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        rank = len(bottoms[0])
        self._axis = self.axis(self.p.axis, rank, "crop_param.axis")
        given, cropped = len(self.p.offset), rank - self._axis
        what = f"{given} offsets for {cropped} cropped axes"
        remedy = "give one for all, or one for each axis from crop_param.axis on"
        self.check(given in {0, 1, cropped}, what, field="crop_param.offset", remedy=remedy)
        what = f"bottom 1 has {len(bottoms[1])} axes, bottom 0 has {rank}"
        self.check(len(bottoms[1]) >= rank, what, field="bottom[1]", remedy="give it as many axes")
        offsets = tuple(self.p.offset) or (0,)
        self._offsets = offsets * cropped if len(offsets) == 1 else offsets
        self._check_bounds(bottoms[0], bottoms[1])

    def _check_bounds(self, data: Sequence[int], like: Sequence[int]) -> None:
        for axis, offset in enumerate(self._offsets, self._axis):
            what = f"axis {axis}: offset {offset} + size {like[axis]} exceeds bottom 0's size {data[axis]}"
            inside = data[axis] - offset >= like[axis]
            self.check(inside, what, field="crop_param.offset", remedy="crop less, or start earlier")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        data, like = bottoms
        return [(*data[: self._axis], *like[self._axis : len(data)])]

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        data, like = bottoms
        self._check_bounds(data.shape, like.shape)
        sizes = zip(self._offsets, like.shape[self._axis :], strict=False)
        cuts: Any = (..., *(slice(start, start + size) for start, size in sizes))
        return [data[cuts]]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        return call(w.part("crop"), *bottoms, str(self._axis), *map(str, self._offsets))

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        axes = np.arange(self._axis, len(self.bottom_shapes[0]), dtype=np.int64)
        starts = np.array(self._offsets, np.int64)
        sizes = np.array(self.top_shapes_built[0][self._axis :], np.int64)
        ends = g.constant(starts + sizes)
        if self._axis == 0 and g.dynamic_batch:
            like = g.op("Gather", [*g.op("Shape", [bottoms[1]]), g.constant(axes)])
            ends = g.op("Add", [*like, g.constant(starts)])[0]
        g.op("Slice", [bottoms[0], g.constant(starts), ends, g.constant(axes)], tops)
