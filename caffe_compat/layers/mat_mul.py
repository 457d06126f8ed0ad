"""MatMul."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import reshape
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class MatMul(Layer):
    """Products of the matrices in the last two axes of A and B (matmul_layer.cpp of synopsys-caffe).

    A is bottom 0, B bottom 1, or without one the blob, of shape `blob_shape`, 0 at first. With as many axes, those
    before the last two must be equal, and transpose_a and transpose_b turn the matrices around; a B with fewer axes has
    two, and multiplies all of A as one matrix with A's last axis as columns. Shapes are then those without transposing;
    transpose_a and transpose_b read the values of either matrix as if they lay column by column. The fork has no
    backward pass; the gradient is the derivative.
    """

    TYPE = "MatMul"
    DIALECTS = ("synopsys",)
    PARAM = "matmul_param"
    BOTTOMS = (1, 2)
    BLOBS = ("weight",)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = "one bottom and no blob_shape"
        known = len(bottoms) == 2 or self.has("blob_shape")
        self.check(known, what, field="matmul_param", remedy="state blob_shape, or give B as bottom 1")
        what = f"B has shape {self._second(bottoms)}, A has {bottoms[0]}"
        flat, like = len(self._second(bottoms)) == 2, len(self._second(bottoms)) == len(bottoms[0])
        fine = len(bottoms[0]) >= 2 and (flat or like)
        self.check(fine, what, field="bottom", remedy="give B as many axes as A, or two")
        self.like = like

    def _second(self, bottoms: Sequence[Shape]) -> Shape:
        return bottoms[1] if len(bottoms) == 2 else tuple(self.p.blob_shape)

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [] if len(bottoms) == 2 else [tuple(self.p.blob_shape)]

    def fillers(self) -> list[pb.FillerParameter]:
        return [pb.FillerParameter()] if len(self.param.bottom) == 1 else []

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        a, b = bottoms[0], self._second(bottoms)
        rows, inner = a[:-3:-1] if self.p.transpose_a and self.like else a[-2:]
        depth, columns = b[:-3:-1] if self.p.transpose_b and self.like else b[-2:]
        what = f"A of shape {a} and B of shape {b} cannot be multiplied"
        fine = inner == depth and b[:-2] in (a[:-2], ())
        self.check(fine, what, field="bottom", remedy="let the columns of A be the rows of B")
        return [(*a[:-2], rows, columns)]

    def macs(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        return prod(tops[0]) * bottoms[0][-2 if self.p.transpose_a and self.like else -1]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        top = self.reshape(bottoms)[0]
        a, b = bottoms + blobs
        if self._as_columns():
            shapes = self._laid(tuple(a.shape), tuple(b.shape))
            a, b = a.reshape(shapes[0]), b.reshape(shapes[1])
        a, b = (m.mT if turn else m for m, turn in ((a, self.p.transpose_a), (b, self.p.transpose_b)))
        return [torch.matmul(a, b).reshape(top)]

    def _as_columns(self) -> bool:
        return not self.like and bool(self.p.transpose_a or self.p.transpose_b)

    def _laid(self, a: Shape, b: Shape) -> tuple[Shape, Shape]:
        """The two matrices before they are turned around, with a B of fewer axes than A."""
        return (a[-1], -1) if self.p.transpose_a else (-1, a[-1]), b[::-1] if self.p.transpose_b else b

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        shapes = (self.bottom_shapes[0], self._second(self.bottom_shapes))
        names = bottoms + blobs
        if self._as_columns():
            laid = self._laid(*shapes)
            names = [reshape(g, name, shape)[0] for name, shape in zip(names, laid, strict=True)]
            shapes = laid
        turns = zip(names, (self.p.transpose_a, self.p.transpose_b), map(len, shapes), strict=True)
        operands = [
            g.op("Transpose", [name], perm=[*range(rank - 2), rank - 1, rank - 2])[0] if turn else name
            for name, turn, rank in turns
        ]
        if not self._as_columns():
            g.op("MatMul", operands, tops)
            return
        reshape(g, g.op("MatMul", operands)[0], [-1, *self.top_shapes_built[0][1:]], tops)
