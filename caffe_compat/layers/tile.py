"""Tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Tile(Layer):
    """The bottom `tiles` times, one after another along `axis` (1 by default) (tile_layer.cpp)."""

    TYPE = "Tile"
    FROM_ONNX = True
    PARAM = "tile_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        rank, field = len(bottoms[0]), "tile_param.tiles"
        dim = self.axis(self.p.axis, rank, "tile_param.axis")
        self.check(self.has("tiles"), "no number of tiles", field="tile_param", remedy="state tiles")
        self.check(self.p.tiles > 0, f"tiles {self.p.tiles}; it must be > 0", field=field, remedy="state how many")
        self.repeats = (*(1,) * dim, self.p.tiles, *(1,) * (rank - dim - 1))

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [tuple(size * times for size, times in zip(bottoms[0], self.repeats, strict=True))]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [bottoms[0].repeat(self.repeats)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        g.op("Tile", [*bottoms, g.constant(np.array(self.repeats, np.int64))], tops)
