"""Parameter."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.fillers import OF_FORKS, known, problem
from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class Parameter(Layer):
    """A learned blob of the given shape as top (parameter_layer.hpp).

    It starts at 0, or as `blob_filler` says, which happynear/caffe-windows has, or `filler`, which
    openvinotoolkit/training_toolbox_caffe has.
    """

    TYPE = "Parameter"
    FROM_ONNX = True
    PARAM = "parameter_param"
    FORK_FIELDS = ("parameter_param.blob_filler", "parameter_param.filler")
    BOTTOMS = (0, 0)
    BLOBS = ("weight",)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = f"a blob of shape {tuple(self.p.shape.dim)} holds no values"
        field = "parameter_param.shape"
        self.check(prod(self.p.shape.dim) > 0, what, field=field, remedy="let every size be at least 1")
        self.start = "filler" if self.has("filler") else "blob_filler"
        filler = getattr(self.p, self.start)
        forks = self.context.dialect in OF_FORKS.get(filler.type, ())
        why = problem(filler, tuple(self.p.shape.dim), forks=forks) if self.has(self.start) else ""
        self.check(not why, why, field=f"parameter_param.{self.start}", remedy=f"fillers: {', '.join(known('bvlc'))}")

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [tuple(self.p.shape.dim)]

    def fillers(self) -> list[pb.FillerParameter]:
        return [getattr(self.p, self.start) if self.has(self.start) else pb.FillerParameter(type="constant")]

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [tuple(self.p.shape.dim)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [blobs[0].view_as(blobs[0])]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        g.op("Identity", blobs, tops)
