"""Im2col: the patches that a convolution would see, as channels."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.layers.convolution import Geometry, read_geometry, read_geometry_2013
from caffe_compat.onnx_forms import reshape

if TYPE_CHECKING:
    from torch import Tensor


@register
class Im2col(Layer):
    """Patches as channels (im2col_layer.cpp, im2col.cpp).

    top[n, (c, k), i] = bottom[n, c, i stride - pad + k dilation], 0 outside the bottom; (c, k) counts kernel positions
    fastest, row before column. Sizes as Convolution's; the channels become channels * prod(kernel).
    """

    TYPE = "Im2col"
    HEEDLESS = True
    V1 = ("IM2COL",)
    V0 = ("im2col",)
    PARAM = "convolution_param"

    geometry: Geometry

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.geometry = self.read_geometry(bottoms[0])
        what = f"axis {self.p.axis} is the last of {len(bottoms[0])}; Im2col needs a spatial axis behind it"
        spatial = bool(self.geometry.kernel)
        self.check(spatial, what, field="convolution_param.axis", remedy="choose the channels' axis")

    def read_geometry(self, bottom: Shape) -> Geometry:
        return read_geometry(self, bottom)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        axis, shape = self.geometry.axis, bottoms[0]
        channels = shape[axis] * prod(self.geometry.kernel)
        return [(*shape[:axis], channels, *self.geometry.down(shape[axis + 1 :]))]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        from torch.nn.functional import pad

        geo, x = self.geometry, bottoms[0]
        shape = self.top_shapes([tuple(x.shape)])[0]
        ends = [p + m for p, m in zip(geo.pad, geo.missing(x.shape[geo.axis + 1 :]), strict=True)]
        x = pad(x, [n for before, behind in zip(geo.pad[::-1], ends[::-1], strict=True) for n in (before, behind)])
        for i, (extent, step, dilation) in enumerate(zip(geo.extent, geo.stride, geo.dilation, strict=True)):
            x = x.unfold(geo.axis + 1 + i, extent, step)[..., ::dilation]  # (..., C, out..., k...)
        first = geo.axis + 1
        spatial = len(geo.kernel)
        order = [*range(first), *range(first + spatial, first + 2 * spatial), *range(first, first + spatial)]
        return [x.permute(order).reshape(shape)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        geo, shape = self.geometry, self.bottom_shapes[0]
        first, spatial = geo.axis + 1, len(geo.kernel)
        ends = [p + m for p, m in zip(geo.pad, geo.missing(shape[first:]), strict=True)]
        pads = np.array([*[0] * first, *geo.pad, *[0] * first, *ends], np.int64)
        name = g.op("Pad", [bottoms[0], g.constant(pads)], mode="constant")[0]
        for i, out in enumerate(geo.down(shape[first:])):
            taps = np.arange(geo.kernel[i])[:, None] * geo.dilation[i]
            places = taps + np.arange(out) * geo.stride[i]  # (k, out)
            name = g.op("Gather", [name, g.constant(places.astype(np.int64))], axis=first + 2 * i)[0]
        order = [*range(first), *range(first, first + 2 * spatial, 2), *range(first + 1, first + 2 * spatial, 2)]
        name = g.op("Transpose", [name], perm=order)[0]
        top = self.top_shapes_built[0]
        reshape(g, name, (-1, *top[1:]) if geo.axis else top, tops)


@register
class Im2col2013(Im2col):
    """Im2col of 3213bd87e (im2col_layer.cpp): square kernel over (N, C, H, W), no padding."""

    PROFILES = ("dec2013",)

    def read_geometry(self, bottom: Shape) -> Geometry:
        return read_geometry_2013(self, bottom)
