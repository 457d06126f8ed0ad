"""SPP: spatial pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

from caffe_compat.errors import ConversionError
from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.layers.pooling import (
    Window,
    ave_pool,
    max_pool,
    stochastic_test,
    stochastic_train,
    write_ave_pool,
    write_max_pool,
)

if TYPE_CHECKING:
    from torch import Tensor


@register
class SPP(Layer):
    """Pooling at 2^0, 2^1, ... bins a side, flattened and put together (spp_layer.cpp).

    Level l pools with kernel = stride = ceil(size / 2^l) and pad = (kernel 2^l - size + 1) / 2 on both sides, by
    Pooling's rules. Top: (N, C * bins); with one level it is Pooling's own top (N, C, 1, 1).
    """

    TYPE = "SPP"
    PARAM = "spp_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        usable = len(bottoms[0]) == 4 and min(bottoms[0][2:]) > 0
        remedy = "SPP takes (N, C, H, W) with H and W > 0"
        self.check(usable, f"the bottom has shape {bottoms[0]}", field="bottom", remedy=remedy)
        field = "spp_param.pyramid_height"
        self.check(self.p.pyramid_height > 0, "pyramid_height is 0", field=field, remedy="make it > 0")
        self._height = int(self.p.pyramid_height)
        self.method = self.p.DESCRIPTOR.enum_types_by_name["PoolMethod"].values_by_number[self.p.pool].name
        self._levels(*bottoms[0][2:])

    def _levels(self, height: int, width: int) -> list[Window]:
        """The windows of each level for a bottom of that size."""
        levels = []
        for level in range(self._height):
            window = level_window(level, height, width)
            what = f"level {level} of a {height} x {width} bottom needs pad {window.pad} with kernel {window.kernel}"
            below = all(p < k for p, k in zip(window.pad, window.kernel, strict=True))
            self.check(below, what, field="spp_param.pyramid_height", remedy="use fewer levels or a larger bottom")
            padded = any(window.pad) and self.method == "STOCHASTIC"
            remedy = "stochastic pooling takes no padding: use MAX or AVE"
            self.check(not padded, what, field="spp_param.pool", remedy=remedy)
            levels.append(window)
        return levels

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        items, channels, *size = bottoms[0]
        outputs = [window.output(size) for window in self._levels(*size)]
        if len(outputs) == 1:
            return [(items, channels, *outputs[0])]
        return [(items, sum(channels * h * w for h, w in outputs))]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        x = bottoms[0]
        pooled = [self._pool(x, window) for window in self._levels(*x.shape[2:])]
        return [torch.cat([y.flatten(1) for y in pooled], 1)] if len(pooled) > 1 else pooled

    def _pool(self, x: Tensor, window: Window) -> Tensor:
        if self.method == "MAX":
            return max_pool(x, window)
        if self.method == "AVE":
            return ave_pool(x, window)
        return stochastic_train(x, window) if self.phase == "TRAIN" else stochastic_test(x, window)

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if self.method == "STOCHASTIC":
            what = "stochastic SPP has no form in ONNX"
            raise ConversionError(what, where=self.where(), remedy="convert to PyTorch (.safetensors)")
        size = self.bottom_shapes[0][2:]
        levels = self._levels(*size)
        write = write_max_pool if self.method == "MAX" else write_ave_pool
        if len(levels) == 1:
            write(g, bottoms[0], size, levels[0], tops)
            return
        pooled = [write(g, bottoms[0], size, window) for window in levels]
        flat = [g.op("Flatten", name, axis=1)[0] for name in pooled]
        g.op("Concat", flat, tops, axis=1)


def level_window(level: int, height: int, width: int) -> Window:
    """The window that cuts a bottom into 2^level bins a side (SPPLayer::GetPoolingParam)."""
    bins = 2**level
    kernel = (ceil(height / bins), ceil(width / bins))
    pad = ((kernel[0] * bins - height + 1) // 2, (kernel[1] * bins - width + 1) // 2)
    return Window(kernel, kernel, pad)
