"""Crop of nets for segmentation from before BVLC Caffe had one: it finds its offsets itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.convolution import Convolution
from caffe_compat.layers.crop import Crop
from caffe_compat.layers.deconvolution import Deconvolution
from caffe_compat.layers.pooling import Pooling

Line: TypeAlias = tuple[np.float32, np.float32]
"""x -> a x + b along one axis, in the float32 of the fork."""

UNMOVED = frozenset(
    {
        *("AbsVal", "BNLL", "Dropout", "Exp", "Log", "PReLU", "Power", "ReLU", "Sigmoid", "TanH", "Threshold"),
        *("Concat", "Eltwise", "LRN", "MVN", "Slice", "Softmax", "Split"),
    }
)
"""Layers that leave each place where it is."""
EXACT = 1e-15
SAME: Line = (np.float32(1), np.float32(0))


@register
class CropAligned(Crop):
    """Bottom 0 cut to bottom 1's height and width where both show the same places of the blob that they come from.

    From both bottoms the way back goes by first bottoms, past layers in place, to the first blob on both. A
    convolution or pooling takes x of its bottom to (x - ((kernel - 1) / 2 - pad)) / stride, a deconvolution does the
    reverse, this layer takes x to x - offset; other layers have no such map and are refused, but for those that move
    nothing. Steps must come out equal, and offsets whole and not below 0. The fork does not check that bottom 0
    reaches as far; here it must.

    Source: crop_layer.cpp, coords.hpp and the coord_map of each layer of torrvision/caffe.
    """

    DIALECTS = ("crfasrnn",)
    TRACES = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        for position, shape in enumerate(bottoms):
            what = f"bottom {position} has {len(shape)} axes; it must have 4"
            self.check(
                len(shape) == 4, what, field=f"bottom[{position}]", remedy="give (items, channels, rows, columns)"
            )
        stated = self.param.HasField("crop_param")
        self.check(not stated, "this fork has no crop_param", field="crop_param", remedy="remove it")
        self._axis = 2
        self._offsets = self._aligned()
        self._check_bounds(bottoms[0], bottoms[1])

    def _aligned(self) -> tuple[int, ...]:
        ways = [dict(way) for way in self.ways]
        shared = next((blob for blob in ways[1] if blob in ways[0]), None)
        if shared is None:
            what, remedy = "the bottoms come from no common blob", "crop blobs that come from one"
            raise self.error(what, field="bottom[1]", remedy=remedy)
        data, like = (self._map(way, shared) for way in self.ways)
        offsets = []
        for own, other in zip(data, like, strict=True):
            step, start = _compose(other, _inverse(own))
            what = f"a step in bottom 0 is {step:g} of bottom 1"
            self.check(abs(step - 1) <= EXACT, what, field="bottom[1]", remedy="bring both to one scale")
            whole = start <= 0 and abs(start - np.round(start)) <= EXACT
            what = f"bottom 1 begins at {-start:g} of bottom 0"
            self.check(bool(whole), what, field="bottom[1]", remedy="choose kernels and pads with which it is whole")
            offsets.append(int(-np.round(start)))
        return tuple(offsets)

    def _map(self, way: Sequence[tuple[str, Layer]], end: str) -> tuple[Line, Line]:
        """From places of the blob `end` to those of the first on the way, for rows and columns."""
        rows, columns = SAME, SAME
        for blob, layer in way:
            if blob == end:
                break
            down, across = self._moves(layer)
            rows, columns = _compose(rows, down), _compose(columns, across)
        return rows, columns

    def _moves(self, layer: Layer) -> tuple[Line, Line]:
        if layer.TYPE in UNMOVED:
            return SAME, SAME
        if isinstance(layer, CropAligned):
            rows, columns = ((np.float32(1), np.float32(-offset)) for offset in layer._offsets)
            return rows, columns
        windows = _windows(layer)
        if len(windows) != 2:
            what = f'{layer.TYPE} "{layer.name}" between the bottoms says nothing of where its places come from'
            raise self.error(what, field="bottom[0]", remedy="crop before it")
        rows, columns = (
            (np.float32(stride), np.float32(extent - 1) / np.float32(2) - np.float32(pad))
            for extent, stride, pad in windows
        )
        return (rows, columns) if isinstance(layer, Deconvolution) else (_inverse(rows), _inverse(columns))


def _windows(layer: Layer) -> list[tuple[int, int, int]]:
    """(extent, stride, pad) along each axis of a layer that has windows; none for others."""
    if isinstance(layer, Convolution | Deconvolution):
        geometry = layer.geometry
        return list(zip(geometry.extent, geometry.stride, geometry.pad, strict=True))
    if isinstance(layer, Pooling):
        window = layer.window
        return list(zip(window.kernel, window.stride, window.pad, strict=True))
    return []


def _compose(outer: Line, inner: Line) -> Line:
    return outer[0] * inner[0], outer[0] * inner[1] + outer[1]


def _inverse(line: Line) -> Line:
    return np.float32(1) / line[0], -line[1] / line[0]
