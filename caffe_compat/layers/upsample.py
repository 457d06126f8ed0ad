"""Upsample: two forks' layers of that name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.errors import ConversionError
from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import INT64, reshape

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple[int, int]


def check_four_axes(layer: Layer, bottoms: Sequence[Shape]) -> None:
    for position, shape in enumerate(bottoms):
        what = f"bottom {position} has shape {shape}; four axes are needed"
        field = f"bottom[{position}]"
        layer.check(len(shape) == 4, what, field=field, remedy="reshape it to (N, C, H, W)")


@register
class UpsampleNearest(Layer):
    """Each value becomes a square of `scale` x `scale` values (upsample_layer.cpp of eric612/MobileNet-YOLO)."""

    TYPE = "Upsample"
    DIALECTS = ("mobilenet-yolo",)
    PARAM = "upsample_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.scale = self.p.scale if self.has("scale") else 1
        self.check(self.scale > 0, "scale is 0", field="upsample_param.scale", remedy="make it > 0")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        check_four_axes(self, bottoms)
        n, channels, height, width = bottoms[0]
        return [(n, channels, height * self.scale, width * self.scale)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        squares = bottoms[0][:, :, :, None, :, None].expand(-1, -1, -1, self.scale, -1, self.scale)
        return [squares.reshape(self.reshape(bottoms)[0])]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        scales = g.constant(np.array([1, 1, self.scale, self.scale], np.float32))
        modes = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        g.op("Resize", [bottoms[0], "", scales], tops, **modes)


@register
class UpsampleMask(Layer):
    """Puts each value of bottom 0 at the place h W + w that bottom 1 holds for it, 0 elsewhere.

    Bottom 1 is the mask, the second top, of a MAX Pooling layer. Of several values for one place the last stays, and
    all get its gradient. (H, W) of the top is `upsample_h` x `upsample_w`, or the bottom's times `scale` (2 by default,
    or scale_h and scale_w), one less where pad_out_h or pad_out_w says so.
    Source: upsample_layer.cpp of alexgkendall/caffe-segnet.
    """

    TYPE = "Upsample"
    DIALECTS = ("segnet",)
    PARAM = "upsample_param"
    BOTTOMS = (2, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.size = self._pair("upsample_h", "upsample_w")
        if self.size is not None:
            self._check_above_one("upsample_h", "upsample_w", self.size)
            return
        self.factor = self._factor()
        self.less = (int(self.p.pad_out_h), int(self.p.pad_out_w))
        for axis, name in enumerate("hw"):
            what = f"pad_out_{name} needs a scale of 2, got {self.factor[axis]}"
            fine = not self.less[axis] or self.factor[axis] == 2
            remedy = "state upsample_h and upsample_w instead"
            self.check(fine, what, field=f"upsample_param.pad_out_{name}", remedy=remedy)

    def _factor(self) -> Pair:
        apart = self._pair("scale_h", "scale_w")
        stated = next((name for name in ("scale_h", "scale_w") if self.has(name)), "scale_h")
        what = "the scale is given by scale, or by both scale_h and scale_w"
        one_way = not self.has(stated) or (apart is not None and not self.has("scale"))
        self.check(
            one_way, what, field=f"upsample_param.{stated}", remedy="state scale alone, or upsample_h and upsample_w"
        )
        scale = self.p.scale if self.has("scale") else 2
        factor = apart or (scale, scale)
        names = ("scale", "scale") if apart is None else ("scale_h", "scale_w")
        self._check_above_one(*names, factor)
        return factor

    def _pair(self, high: str, wide: str) -> Pair | None:
        return (getattr(self.p, high), getattr(self.p, wide)) if self.has(high) and self.has(wide) else None

    def _check_above_one(self, high: str, wide: str, pair: Pair) -> None:
        for name, value in zip((high, wide), pair, strict=True):
            field = f"upsample_param.{name}"
            self.check(value > 1, f"{name} is {value}; it must be above 1", field=field, remedy="make it 2 or more")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        check_four_axes(self, bottoms)
        what = f"the mask has shape {bottoms[1]}, the data {bottoms[0]}"
        same = bottoms[0] == bottoms[1]
        self.check(same, what, field="bottom[1]", remedy="take the mask of the Pooling layer that halved this size")
        return [(*bottoms[0][:2], *(self.size or self._scaled(bottoms[0])))]

    def _scaled(self, bottom: Shape) -> Pair:
        height, width = (n * f - p for n, f, p in zip(bottom[2:], self.factor, self.less, strict=True))
        return height, width

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        top = self.reshape(bottoms)[0]
        places = bottoms[1].detach().to(torch.int64).flatten(2)
        self._check_places(places, top)
        return [_placed()(bottoms[0].flatten(2), places, top[2] * top[3]).view(top)]

    def _check_places(self, places: Tensor, top: Shape) -> None:
        import torch

        if torch.compiler.is_compiling() or not places.numel():
            return
        low, high = map(int, torch.aminmax(places))
        what = f"the mask points to {low if low < 0 else high}; the top has places 0 to {top[2] * top[3] - 1}"
        remedy = "let upsample_h and upsample_w be the size that the Pooling layer of the mask had"
        self.check(low >= 0 and high < top[2] * top[3], what, field="bottom[1]", remedy=remedy)

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if g.opset < 18:
            what = "Upsample with a mask needs operator set 18, where of several values for one place one can be chosen"
            raise ConversionError(what, where=self.where(), remedy="convert with --opset 18")
        (_, _, height, width), (_, _, out_height, out_width) = self.bottom_shapes[0], self.top_shapes_built[0]
        count, zero = out_height * out_width, _integers(g, 0)
        values = reshape(g, bottoms[0], [0, 0, -1])[0]  # (N, C, height * width)
        places = reshape(g, g.op("Cast", [bottoms[1]], to=INT64)[0], [0, 0, -1])[0]
        order = g.op("Expand", [_integers(g, range(height * width)), *g.op("Shape", [places])])
        size = g.op("Concat", [*g.op("Shape", [places], end=2), _integers(g, [count])], axis=0)
        nothing = g.op("Expand", [_integers(g, -1), *size])
        last = g.op("ScatterElements", [*nothing, places, *order], axis=2, reduction="max")[0]
        chosen = g.op("GatherElements", [values, *g.op("Max", [last, zero])], axis=2)
        found = g.op("GreaterOrEqual", [last, zero])
        top = g.op("Where", [*found, *chosen, g.constant(np.array(0, np.float32))])
        reshape(g, top[0], [0, 0, out_height, out_width], tops)


def _integers(g: OnnxWriter, values: int | Sequence[int]) -> str:
    return g.constant(np.array(values, np.int64))


@cache
def _placed() -> Callable[[Tensor, Tensor, int], Tensor]:
    """A function (x, places, count): (N, C, count) with x[n, c, i] at places[n, c, i]; of several i the last."""
    import torch
    from torch.autograd.function import once_differentiable

    class Placed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, places: Tensor, count: int) -> Tensor:
            ctx.save_for_backward(places)
            order = torch.arange(x.shape[2], device=x.device).expand_as(places)
            last = order.new_full((*x.shape[:2], count), -1).scatter_reduce(2, places, order, "amax")
            return x.gather(2, last.clamp(min=0)).where(last >= 0, 0)

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
            return grad.gather(2, ctx.saved_tensors[0]), None, None

    return Placed.apply  # type: ignore[no-any-return]
