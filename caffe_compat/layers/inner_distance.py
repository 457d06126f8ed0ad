"""InnerDistance."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.fillers import check_fillers
from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-6


@register
class InnerDistance(Layer):
    """Distance of each item to each row of the weight: the sum of squares (L2) or of absolute values (L1).

    Items are everything from `axis` on. The weight (num_output, K) is learned, or a second bottom (N, ...). With
    `normalize` each row of a learned weight is brought to length 1 in every forward pass: w / sqrt(w . w + 1e-6).
    `bias_term` means nothing. Not followed: transpose and update_center_only, whose weights the fork reads wrongly.
    Source: inner_distance_layer.cpp of happynear/caffe-windows.
    """

    TYPE = "InnerDistance"
    DIALECTS = ("caffe-windows",)
    PARAM = "inner_distance_param"
    BOTTOMS = (1, 2)
    BLOBS = ("weight",)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self._axis = self.axis(self.p.axis, len(bottoms[0]), "inner_distance_param.axis")
        self.size = prod(bottoms[0][self._axis :])
        for name in ("transpose", "update_center_only"):
            field = f"inner_distance_param.{name}"
            self.check(not getattr(self.p, name), f"{name} is not followed", field=field, remedy="remove it")
        what = f'distance_type "{self.p.distance_type}"'
        known = self.p.distance_type in ("L1", "L2")
        self.check(known, what, field="inner_distance_param.distance_type", remedy="use L2 or L1")
        what = f"num_output is {self.p.num_output}"
        enough = self.p.num_output > 0 or len(bottoms) > 1
        self.check(enough, what, field="inner_distance_param.num_output", remedy="make it > 0")
        check_fillers(self, self.blob_shapes(bottoms))

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(self.p.num_output, self.size)] if len(bottoms) == 1 else []

    def fillers(self) -> list[pb.FillerParameter]:
        return [self.p.weight_filler][: len(self.bottom_shapes) == 1]

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        if len(bottoms) > 1:
            what = f"weights of shape {bottoms[1]} for items of {self.size} values"
            fits = bool(bottoms[1]) and prod(bottoms[1][1:]) == self.size
            self.check(fits, what, field="bottom[1]", remedy=f"feed (N, {self.size})")
        count = bottoms[1][0] if len(bottoms) > 1 else self.p.num_output
        return [(*bottoms[0][: self._axis], count)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        shape = self.reshape(bottoms)[0]
        weight = bottoms[1] if len(bottoms) > 1 else blobs[0]
        if self.p.normalize and len(bottoms) == 1:
            with torch.no_grad():
                weight.div_((weight.square().sum(1, keepdim=True) + EPSILON).sqrt())
        shift = bottoms[0].reshape(-1, 1, self.size) - weight.reshape(-1, self.size)  # (M, N, K)
        each = shift.square() if self.p.distance_type == "L2" else shift.abs()
        return [each.sum(2).reshape(shape)]
