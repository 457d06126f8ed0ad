"""Padding: the layer of generation V0 that puts a border of zeros around its bottom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.layers.dec2013 import FOUR_AXES, check_fields

if TYPE_CHECKING:
    from torch import Tensor


@register
class Padding(Layer):
    """Zeros around (H, W): (N, C, H, W) -> (N, C, H + 2 pad, W + 2 pad) (padding_layer.cpp of 3213bd87e).

    To the layers behind it the zeros are values like others: a maximum may be one of them, a mean counts them. That
    is why it is a layer of its own under dec2013, while BVLC Caffe folds it into the reader's `pad` on upgrade.
    `pad` stands in convolution_param, of which nothing else is read.
    """

    TYPE = "Padding"
    V0 = ("padding",)
    PARAM = "convolution_param"
    PROFILES = ("dec2013",)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        check_fields(self, {"pad"})
        self.check(len(bottoms[0]) == 4, f"the bottom has shape {bottoms[0]}", field="bottom", remedy=FOUR_AXES)
        stated = list(self.p.pad)
        what = f"pad is given {len(stated)} times"
        self.check(len(stated) <= 1, what, field="convolution_param.pad[1]", remedy="give one for all sides")
        self.pad = stated[0] if stated else 0

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        n, c, h, w = bottoms[0]
        return [(n, c, h + 2 * self.pad, w + 2 * self.pad)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        from torch.nn.functional import pad

        return [pad(bottoms[0], [self.pad] * 4)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        sides = [0, 0, self.pad, self.pad]
        g.op("Pad", [bottoms[0], g.constant(np.array(sides * 2, np.int64))], tops, mode="constant")
