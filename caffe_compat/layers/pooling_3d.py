"""Pooling3D and NdPooling: pooling of videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.layers.convolution_3d import check_video, read_shapes
from caffe_compat.layers.pooling import FLT_MAX
from caffe_compat.layers.straight_through import straight_through
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Where a pooling layer looks, one number for each axis behind the channels.

    Attributes:
        cudnn: as in cuDNN the last window of a padded axis starts inside, and means are divided by the whole kernel.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    cudnn: bool = False

    def counts(self, sizes: Sequence[int]) -> Shape:
        """Windows along each axis; an incomplete last one counts."""
        found = []
        for size, kernel, stride, pad in zip(sizes, self.kernel, self.stride, self.pad, strict=True):
            count = -(-(size + 2 * pad - kernel) // stride) + 1
            found.append(count - (self.cudnn and pad > 0 and (count - 1) * stride >= size + pad))
        return tuple(found)

    def behind(self, sizes: Sequence[int]) -> list[int]:
        """How far the last windows reach beyond the bottom; negative where they leave some of it."""
        steps = zip(self.counts(sizes), sizes, self.kernel, self.stride, self.pad, strict=True)
        return [(count - 1) * stride + kernel - pad - size for count, size, kernel, stride, pad in steps]

    def padded(self, x: Tensor, value: float) -> Tensor:
        """The bottom with all that the windows reach."""
        from torch.nn.functional import pad

        ends = [end for pair in zip(self.pad, self.behind(x.shape[2:]), strict=True) for end in reversed(pair)]
        return pad(x, ends[::-1], value=value)

    def unfolded(self, x: Tensor, value: float) -> Tensor:
        """The values of each window: (N, C, windows..., values)."""
        y = self.padded(x, value)
        for axis, (kernel, stride) in enumerate(zip(self.kernel, self.stride, strict=True)):
            y = y.unfold(2 + axis, kernel, stride)
        return y.flatten(2 + len(self.kernel))

    def divisors(self, sizes: Sequence[int]) -> NDArray[np.float64]:
        """What the sums are divided by: sizes of the windows inside the padded bottom."""
        if self.cudnn:
            return np.full(self.counts(sizes), float(np.prod(self.kernel)))
        lengths = []
        for axis, (count, size) in enumerate(zip(self.counts(sizes), sizes, strict=True)):
            start = np.arange(count) * self.stride[axis] - self.pad[axis]
            lengths.append(np.minimum(start + self.kernel[axis], size + self.pad[axis]) - start)
        return reduce(np.multiply.outer, lengths).astype(np.float64)


class PoolingOfVideo(Layer):
    """Base of both: maxima or means of windows over every axis behind the channels."""

    TIED: bool = False
    """The gradient of a maximum goes to all of its window that equal it."""
    windows: Windows

    def method(self) -> int:
        """PoolMethod, which all messages number alike."""
        return int(self.p.pool)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        counts = self.windows.counts(bottoms[0][2:])
        what = f"a kernel of {self.windows.kernel} on a bottom of shape {bottoms[0]}"
        self.check(min(counts) > 0, what, field=self.PARAM, remedy="use a smaller kernel")
        return [(*bottoms[0][:2], *counts)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch
        from torch.nn import functional

        self.reshape(bottoms)
        x, at = bottoms[0], self.windows
        rank = len(at.kernel)
        if self.method() == pb.PoolingParameter.AVE:
            sums: Tensor = at.unfolded(x, 0.0).sum(-1)
            return [sums / torch.as_tensor(at.divisors(x.shape[2:]), dtype=x.dtype, device=x.device)]
        if self.TIED and x.requires_grad and torch.is_grad_enabled():
            values = at.unfolded(x, -FLT_MAX)
            most = values.detach().amax(-1)
            ties = values.where(values == most.unsqueeze(-1), 0).sum(-1)
            return [straight_through()(ties, most)]
        pool: Any = getattr(functional, f"max_pool{rank}d")
        return [pool(at.padded(x, -FLT_MAX), at.kernel, at.stride)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        sizes, at = self.bottom_shapes[0][2:], self.windows
        mean = self.method() == pb.PoolingParameter.AVE
        pads = np.array([0, 0, *at.pad, 0, 0, *at.behind(sizes)], np.int64)
        if pads.any():  # operators take no padding as wide as the kernel
            value = g.constant(np.float32(0 if mean else -FLT_MAX))
            bottoms = g.op("Pad", [*bottoms, g.constant(pads), value])
        attributes: dict[str, Any] = {"kernel_shape": list(at.kernel), "strides": list(at.stride)}
        if not mean:
            g.op("MaxPool", bottoms, tops, **attributes)
            return
        factor = np.float32(np.prod(at.kernel) / at.divisors(sizes))
        g.op("Mul", [*g.op("AveragePool", bottoms, **attributes), g.constant(factor)], tops)


@register
class Pooling3D(PoolingOfVideo):
    """Pooling over frames, height and width (pool3d_layer.cpp of facebookarchive/C3D).

    The windows have kernel_depth frames of kernel_size x kernel_size and are temporal_stride and stride apart; an
    incomplete last one counts. `pad` is that of height and width, for means alone, which count it. The gradient of a
    maximum goes to all that equal it. C3D v1.0 states all this in `pooling_param`.
    """

    TYPE = "Pooling3D"
    DIALECTS = ("c3d", "c3d-v1.0")
    PARAM = "pooling3d_param"
    FORK_FIELDS = ("pooling_param.kernel_depth", "pooling_param.temporal_stride")
    TIED = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        check_video(self, bottoms)
        self.p = self.p if self.param.HasField("pooling3d_param") else self.param.pooling_param
        p, field = self.p, "pooling3d_param" if self.p.DESCRIPTOR.name == "Pooling3DParameter" else "pooling_param"
        for name in ("kernel_depth", "kernel_size", "stride", "temporal_stride"):
            self.check(getattr(p, name) > 0, f"{name} is 0", field=f"{field}.{name}", remedy="state it")
        what = "pad, which is for means alone"
        self.check(not p.pad or p.pool == p.AVE, what, field=f"{field}.pad", remedy="remove it, or use pool: AVE")
        what = "stochastic pooling, which the fork does not have"
        self.check(p.pool != p.STOCHASTIC, what, field=f"{field}.pool", remedy="use MAX or AVE")
        kernel = (p.kernel_depth, p.kernel_size, p.kernel_size)
        self.windows = Windows(kernel, (p.temporal_stride, p.stride, p.stride), (0, p.pad, p.pad))


@register
class NdPooling(PoolingOfVideo):
    """Pooling with the kernel, stride and padding of each axis in blob shapes (cudnn_ndpooling_layer.cpp).

    `kernel_shape` must be stated, also with global_pooling, whose windows are the whole bottom; stride is 1, padding 0
    unless stated. Means are divided by the whole kernel. Source: chuckcho/video-caffe.
    """

    TYPE = "NdPooling"
    DIALECTS = ("video-caffe",)
    PARAM = "pooling_param"
    FORK_FIELDS = tuple(f"pooling_param.{name}" for name in ("kernel_shape", "stride_shape", "pad_shape"))

    def setup(self, bottoms: Sequence[Shape]) -> None:
        kernel, stride, pad = read_shapes(self, bottoms[0])
        kernel = bottoms[0][2:] if self.p.global_pooling else kernel
        self.windows = Windows(tuple(kernel), tuple(stride), tuple(pad), cudnn=True)
        what = "stochastic pooling, which the fork does not have"
        self.check(self.p.pool != self.p.STOCHASTIC, what, field="pooling_param.pool", remedy="use MAX or AVE")
        what = f"{len(kernel)} spatial axes; 1 to 3 can be pooled"
        self.check(1 <= len(kernel) <= 3, what, field="pooling_param.kernel_shape", remedy="reshape the bottom")
