"""Scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.layers.bias import axes_after, operand_shape
from caffe_compat.onnx_forms import append_axes
from caffe_compat.python_forms import call, with_axes
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class Scale(Layer):
    """y = s x, or s x + b with bias_term; s is bottom 1 or a learned blob (scale_layer.cpp).

    s and b meet the axes of x from `axis` on and are repeated over the others; a learned s has the sizes of `num_axes`
    axes there (-1: all the rest). b is always learned, and of the shape of s. Blobs: s unless it is a bottom, then b.
    """

    TYPE = "Scale"
    FROM_ONNX = True
    OUTPUT_FREE = True
    PARAM = "scale_param"
    BOTTOMS = (1, 2)
    BLOBS = ("weight", "bias")
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        if self.p.bias_term:
            self.axis(self.p.axis, len(bottoms[0]), "scale_param.axis")
        self.operand = operand_shape(self, bottoms)
        self.after = axes_after(self, bottoms[0], self.operand)

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [self.operand] * ((len(bottoms) == 1) + self.p.bias_term)

    def fillers(self) -> list[pb.FillerParameter]:
        scale = self.p.filler if self.has("filler") else pb.FillerParameter(type="constant", value=1)
        return [scale] * (len(self.param.bottom) == 1) + [self.p.bias_filler] * self.p.bias_term

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        for operand in [*bottoms[1:], *self.blob_shapes(bottoms)]:
            axes_after(self, bottoms[0], operand)
        return [bottoms[0]]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        x, *operands = bottoms + blobs
        if self.after:
            operands = [operand.view(operand.shape + (1,) * self.after) for operand in operands]
        return [torch.addcmul(operands[1], x, operands[0]) if len(operands) == 2 else x * operands[0]]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        shapes = self.blob_shapes(self.bottom_shapes)
        x, learned = bottoms[0], len(bottoms) == 1
        if learned and self.after + 2 == len(self.bottom_shapes[0]) and len(self.operand) == 1:
            scale = w.module(call(w.part("Scale"), str(self.operand[0]), bias=None if self.p.bias_term else "False"))
            return f"{scale}({x})"
        held = dict(zip(self.BLOBS, map(str, shapes), strict=False))
        blobs = w.module(call(w.part("Blobs"), **held)) if held else ""
        scale = with_axes(f"{blobs}.weight" if learned else bottoms[1], self.after)
        if self.p.bias_term:
            bias = f"{blobs}.{self.BLOBS[len(shapes) - 1]}"
            return call("torch.addcmul", with_axes(bias, self.after), x, scale)
        return f"{x} * {scale}"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        x, *operands = bottoms + blobs
        scale, *bias = (append_axes(g, operand, self.operand, self.after) for operand in operands)
        product = g.op("Mul", [x, scale], 1 if bias else tops)
        if bias:
            g.op("Add", product + bias, tops)
