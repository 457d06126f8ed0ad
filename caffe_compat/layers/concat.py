"""Concat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register

if TYPE_CHECKING:
    from torch import Tensor


def joined_axis(layer: Layer, legacy: str, rank: int) -> int:
    """The axis of a Concat or Slice layer: `axis` (1 by default), or the older unsigned field `legacy`.

    Raises:
        LayerError: both are given, or the bottom has no such axis.
    """
    field = f"{layer.PARAM}.{legacy}"
    if not layer.has(legacy):
        return layer.axis(layer.p.axis, rank, f"{layer.PARAM}.axis")
    layer.check(not layer.has("axis"), f"both axis and {legacy}", field=field, remedy="state axis alone")
    dim: int = getattr(layer.p, legacy)
    what = f"{legacy} {dim} is out of range for a bottom with {rank} axes"
    layer.check(dim < rank, what, field=field, remedy=f"use 0 to {rank - 1}")
    return dim


@register
class Concat(Layer):
    """Bottoms one after another along `axis` (1 by default), of equal sizes otherwise (concat_layer.cpp).

    Older nets say concat_dim, which is not negative.
    """

    TYPE = "Concat"
    FROM_ONNX = True
    V1 = ("CONCAT",)
    V0 = ("concat",)
    PARAM = "concat_param"
    BOTTOMS = (1, None)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.dim = joined_axis(self, "concat_dim", len(bottoms[0]))

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        first = bottoms[0]
        for index, bottom in enumerate(bottoms):
            fits = (*bottom[: self.dim], first[self.dim], *bottom[self.dim + 1 :]) == first
            what = f"bottom {index} has shape {bottom}, bottom 0 {first}; they may differ only at axis {self.dim}"
            self.check(fits, what, field=f"bottom[{index}]", remedy="make the other sizes equal")
        return [(*first[: self.dim], sum(b[self.dim] for b in bottoms), *first[self.dim + 1 :])]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        return [torch.cat(bottoms, self.dim)]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        return f"torch.cat([{', '.join(bottoms)}], dim={self.dim})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        g.op("Concat", bottoms, tops, axis=self.dim)
