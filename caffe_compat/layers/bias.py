"""Bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.onnx_forms import append_axes
from caffe_compat.python_forms import call, with_axes
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


def operand_shape(layer: Layer, bottoms: Sequence[Shape]) -> Shape:
    """Shape of what a Scale or Bias layer applies to bottom 0.

    It is that of bottom 1, or else of a learned blob: `num_axes` axes of bottom 0 from `axis` on, all for -1.

    Raises:
        LayerError: the axes do not exist.
    """
    if len(bottoms) == 2:
        return bottoms[1]
    bottom, count = bottoms[0], layer.p.num_axes
    first, field = layer.axis(layer.p.axis, len(bottom), f"{layer.PARAM}.axis"), f"{layer.PARAM}.num_axes"
    what = f"num_axes {count}; it must be >= 0, or -1 for all"
    layer.check(count >= -1, what, field=field, remedy="state how many axes")
    what = f"axis {first} and num_axes {count} go beyond the {len(bottom)} axes of the bottom"
    layer.check(first + count <= len(bottom), what, field=field, remedy=f"use at most {len(bottom) - first}")
    return bottom[first:] if count == -1 else bottom[first : first + count]


def axes_after(layer: Layer, bottom: Shape, operand: Shape) -> int:
    """How many axes of the bottom follow those that the operand meets; the operand's sizes are checked.

    Raises:
        LayerError: the operand does not fit into the bottom at `axis`.
    """
    if not operand:
        return 0  # a scalar fits anywhere
    field = f"{layer.PARAM}.axis"
    first = layer.axis(layer.p.axis, len(bottom), field)
    met = bottom[first : first + len(operand)]
    what = f"{layer.TYPE} applies shape {operand} at axis {first} of a bottom of shape {bottom}, which has {met} there"
    layer.check(met == operand, what, field=field, remedy="make the sizes equal")
    return len(bottom) - first - len(operand)


@register
class Bias(Layer):
    """y = x + b, where b is bottom 1 or a learned blob, repeated over the axes that it lacks (bias_layer.cpp).

    b meets the axes of x from `axis` on; a learned b has the sizes of `num_axes` axes there (-1: all the rest).
    """

    TYPE = "Bias"
    FROM_ONNX = True
    PARAM = "bias_param"
    BOTTOMS = (1, 2)
    BLOBS = ("bias",)
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.operand = operand_shape(self, bottoms)
        self.after = axes_after(self, bottoms[0], self.operand)

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [self.operand] if len(bottoms) == 1 else []

    def fillers(self) -> list[pb.FillerParameter]:
        return [self.p.filler] if len(self.param.bottom) == 1 else []

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        axes_after(self, *bottoms, *self.blob_shapes(bottoms))
        return [bottoms[0]]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        self.reshape(bottoms)
        x, bias = bottoms + blobs
        return [x + (bias.view(bias.shape + (1,) * self.after) if self.after else bias)]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        if len(bottoms) == 2:
            return f"{bottoms[0]} + {with_axes(bottoms[1], self.after)}"
        blobs = w.module(call(w.part("Blobs"), bias=str(self.operand)))
        return f"{bottoms[0]} + {with_axes(f'{blobs}.bias', self.after)}"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        x, bias = bottoms + blobs
        g.op("Add", [x, append_axes(g, bias, self.operand, self.after)], tops)
