"""Reorg."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import reshape

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_STRIDE = 2


@register
class Reorg(Layer):
    """Darknet's reordering between space and channels: (N, C, H, W) -> (N, C s^2, H/s, W/s), s the stride.

    The formula is that of the way back, applied to the bottom's memory: with c = C / s^2 the bottom is read as
    (N, c, H s, W s), and bottom cell (q, s y + dy, s x + dx) goes to cell ((dy s + dx) c + q, y, x) of (N, C, H, W),
    whose memory is the top. With `reverse`, cell ((dy s + dx) c + q, y, x) goes to (q, s y + dy, s x + dx) of the top
    (N, c, H s, W s). The forks' backward passes read memory that nothing wrote; here the gradient is the true one.
    Stride: 2 by default in yolo9000, required in mobilenet-yolo, which alone has `reverse`.
    Source: reorg_layer.cpp of choasup/caffe-yolo9000, reorg_layer.hpp of eric612/MobileNet-YOLO.
    """

    TYPE = "Reorg"
    DIALECTS = ("yolo9000", "mobilenet-yolo")
    PARAM = "reorg_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        field, stated = "reorg_param.stride", self.has("stride")
        what = "the stride is missing"
        known = stated or self.context.dialect != "mobilenet-yolo"
        self.check(known, what, field=field, remedy="state reorg_param { stride: 2 }")
        self.stride = self.p.stride if stated else DEFAULT_STRIDE
        self.check(self.stride > 0, f"stride is {self.stride}", field=field, remedy="make it > 0")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        shape, s = bottoms[0], self.stride
        what = f"the bottom has shape {shape}; four axes are needed"
        self.check(len(shape) == 4, what, field="bottom[0]", remedy="reshape it to (N, C, H, W)")
        n, channels, height, width = shape
        what = f"{channels} channels are no multiple of stride^2 = {s * s}"
        self.check(channels % (s * s) == 0, what, field="reorg_param.stride", remedy="choose another stride")
        if self.p.reverse:
            return [(n, channels // (s * s), height * s, width * s)]
        what = f"a bottom of {height} x {width} is no multiple of stride {s}"
        fits = height % s == 0 and width % s == 0
        self.check(fits, what, field="reorg_param.stride", remedy="choose another stride, or resize the image")
        return [(n, channels * s * s, height // s, width // s)]

    def _steps(self, shape: Shape) -> tuple[list[int], list[int]]:
        """How the bottom is read, and the order in which its axes are written."""
        s, (channels, height, width) = self.stride, shape[1:]
        inner = channels // (s * s)
        if self.p.reverse:
            return [s, s, inner, height, width], [0, 3, 4, 1, 5, 2]
        return [inner, height, s, width, s], [0, 3, 5, 1, 2, 4]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        top = self.reshape(bottoms)[0]
        apart, order = self._steps(x.shape)
        return [x.reshape(x.shape[0], *apart).permute(order).reshape(top)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        apart, order = self._steps(self.bottom_shapes[0])
        moved = g.op("Transpose", reshape(g, bottoms[0], [0, *apart]), perm=order)
        reshape(g, moved[0], [0, *self.top_shapes_built[0][1:]], tops)
