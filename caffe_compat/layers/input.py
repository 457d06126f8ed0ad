"""Input: blobs that the caller fills."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.dec2013 import FOUR_AXES
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class Input(Layer):
    """Tops that the caller fills (input_layer.cpp).

    `shape` is given once for all tops, or once for each. Without any, Caffe leaves the tops unshaped until the
    caller reshapes them, and no layer can read them before; here that is an error unless the caller gives shapes.
    Under dec2013 an input has exactly four sizes (net.cpp:38 of 3213bd87e).
    """

    TYPE = "Input"
    FROM_ONNX = True
    PARAM = "input_param"
    PROFILES = ("bvlc", "dec2013")
    BOTTOMS = (0, 0)
    TOPS = (1, None)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        given = len(self.p.shape)
        what = f"{given} shape(s) for {self.tops} top(s)"
        self.check(given in {0, 1, self.tops}, what, field="input_param.shape", remedy="give one for all, or one each")
        self.check(given > 0, "the input has no shape", field="top", remedy="state input_param.shape, or pass one")
        for position, shape in enumerate(self.p.shape):
            self._check_shape(position, shape)

    def _check_shape(self, position: int, shape: pb.BlobShape) -> None:
        field = f"input_param.shape[{position}]"
        least = min(shape.dim, default=0)
        self.check(least >= 0, f"size {least} is negative", field=field, remedy="pass a shape for this input")
        if self.context.profile == "dec2013":
            self.check(len(shape.dim) == 4, f"an input has {len(shape.dim)} size(s)", field=field, remedy=FOUR_AXES)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        shapes = [tuple(shape.dim) for shape in self.p.shape]
        return shapes if len(shapes) == self.tops else shapes * self.tops

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        raise self.error("an input has nothing to compute", remedy="give the net a value for it")
