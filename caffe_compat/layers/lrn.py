"""LRN: local response normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.layers.dec2013 import check_fields
from caffe_compat.layers.pooling import Window, write_ave_pool
from caffe_compat.python_forms import call, number

if TYPE_CHECKING:
    from torch import Tensor


@register
class LRN(Layer):
    """Division by the energy around each value (lrn_layer.cpp).

    ACROSS_CHANNELS  top = bottom * (k + alpha / n * sum of bottom^2 over n channels around this one)^-beta
    WITHIN_CHANNEL   top = bottom * (1 + alpha * mean of bottom^2 over n x n positions around this one)^-beta;
                     Caffe makes it of AVE pooling with pad (n - 1) / 2, so zeros outside count, and k is not used

    n = local_size, odd. In place ACROSS_CHANNELS loses its bottom to the power, and gives (...)^(-2 beta).
    """

    TYPE = "LRN"
    HEEDLESS = True
    FROM_ONNX = True
    V1 = ("LRN",)
    V0 = ("lrn",)
    PARAM = "lrn_param"
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.check_size()
        what = f"the bottom has shape {bottoms[0]}; LRN takes four axes"
        self.check(len(bottoms[0]) == 4, what, field="bottom", remedy="reshape it to (N, C, H, W)")
        p, size = self.p, self.p.local_size
        self._size, self._alpha, self._beta, self._k = size, p.alpha, p.beta, p.k
        self._across = p.norm_region == p.ACROSS_CHANNELS
        self._before, self._behind = (size - 1) // 2, size // 2
        self._window = Window((size, size), (1, 1), (self._before, self._before))
        self._overwritten = self._across and self.param.bottom[:1] == self.param.top[:1]

    def check_size(self) -> None:
        size = self.p.local_size
        self.check(size % 2 == 1, f"local_size {size} is even", field="lrn_param.local_size", remedy="make it odd")

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        if not self._across:
            return [x * (self._energy_within(x) * self._alpha + 1).pow(-self._beta)]
        power = (self._energy_across(x) * (self._alpha / self._size) + self._k).pow(-self._beta)
        return [power * power if self._overwritten else x * power]

    def _energy_across(self, x: Tensor) -> Tensor:
        """Sums of squares over the channels around each."""
        from torch.nn.functional import pad

        channels = x.shape[1]
        before, behind = min(self._before, channels - 1), min(self._behind, channels - 1)
        squares = pad(x.square(), (0, 0, 0, 0, before, behind))
        total = squares[:, :channels]
        for shift in range(1, before + behind + 1):
            total = total + squares[:, shift : shift + channels]
        return total

    def _energy_within(self, x: Tensor) -> Tensor:
        """Means of squares over the positions around each."""
        from torch.nn.functional import avg_pool2d

        return avg_pool2d(x.square(), self._size, 1, self._before)

    # -- ONNX ----------------------------------------------------------------------------------------------

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        if self._overwritten:
            return super().to_python(w, bottoms)
        named = {"alpha": number(self._alpha), "beta": number(self._beta)}
        if self._across:
            return call(w.part("lrn_across_channels"), bottoms[0], str(self._size), **named, k=number(self._k))
        return call(w.part("lrn_within_channel"), bottoms[0], str(self._size), **named)

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        p = self.p
        if self._across and p.local_size % 2 and not self._overwritten:
            g.op("LRN", bottoms, tops, alpha=p.alpha, beta=p.beta, bias=p.k, size=p.local_size)
            return
        squares = g.op("Mul", [bottoms[0], bottoms[0]])[0]
        if self._across:
            energy, factor, constant = self._write_across(g, squares), p.alpha / p.local_size, p.k
        else:
            size = self.bottom_shapes[0][2:]
            energy, factor, constant = write_ave_pool(g, squares, size, self._window), p.alpha, 1.0
        scaled = g.op("Mul", [*energy, _scalar(g, factor)])
        scale = g.op("Add", [*scaled, _scalar(g, constant)])
        if self._overwritten:
            g.op("Pow", [*scale, _scalar(g, -2 * p.beta)], tops)
        else:
            g.op("Mul", [bottoms[0], *g.op("Pow", [*scale, _scalar(g, -p.beta)])], tops)

    def _write_across(self, g: OnnxWriter, squares: str) -> list[str]:
        """Sums over channels as a 1 x 1 convolution with a band of ones."""
        places = np.arange(self.bottom_shapes[0][1])
        distance = places[None, :] - places[:, None]  # (out, in)
        band = (distance >= -self._before) & (distance <= self._behind)
        return g.op("Conv", [squares, g.constant(band.astype(np.float32)[:, :, None, None])])


def _scalar(g: OnnxWriter, value: float) -> str:
    return g.constant(np.array(value, np.float32))


@register
class LRN2013(LRN):
    """LRN of 3213bd87e (lrn_layer.cpp): across channels only, and the constant is 1.

    local_size may be even: (local_size - 1) / 2 channels before each count, and the rest behind it.
    """

    PROFILES = ("dec2013",)

    def check_size(self) -> None:
        check_fields(self, {"local_size", "alpha", "beta"})
        self.check(self.p.local_size > 0, "local_size is 0", field="lrn_param.local_size", remedy="make it > 0")
