"""Deconvolution: the transpose of Convolution."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.convolution import MOST_TORCH_AXES, BaseConvolution

if TYPE_CHECKING:
    from torch import Tensor


@register
class Deconvolution(BaseConvolution):
    """Convolution with forward and backward exchanged, plus bias (deconv_layer.cpp, base_conv_layer.cpp).

    top[n, o, j] = bias[o] + sum over i, k with i stride - pad + k dilation = j, and the channels c of o's group, of
                   weight[c, o, k] bottom[n, c, i]

    out = stride (in - 1) + dilation (kernel - 1) + 1 - 2 pad. Weight blob: (channels, num_output / group, kernel...).
    """

    TYPE = "Deconvolution"
    FROM_ONNX = True
    OUTPUT_FREE = True
    V1 = ("DECONVOLUTION",)
    OP = "ConvTranspose"

    def in_out(self, channels: int) -> tuple[int, int]:
        return channels, self.p.num_output

    def sizes(self, sizes: Sequence[int]) -> Shape:
        return self.geometry.up(sizes)

    def macs(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        return sum(self._positions(bottom) for bottom in bottoms) * prod(self.weight_shape)

    def _torch_arguments(self) -> tuple[Any, ...]:
        geo = self.geometry
        return geo.stride or 1, geo.pad or 0, 0, self.p.group, geo.dilation or 1

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        import torch

        if x.ndim == 4:
            return torch.conv_transpose2d(x, weight, bias, *self._arguments)
        stride, pad, _, group, dilation = self._arguments
        return deconvolve(x, weight, bias, stride, pad, dilation, group)


def deconvolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, pad: Any, dilation: Any, group: int
) -> Tensor:
    """Deconvolution over any number of spatial axes: beyond torch's kernels, each tap of the first axis in turn."""
    import torch

    if weight.ndim - 2 <= MOST_TORCH_AXES:
        kernels: Any = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
        return kernels[weight.ndim - 3](x, weight, bias, stride, pad, 0, group, dilation)  # type: ignore[no-any-return]
    rows = x.transpose(1, 2).flatten(0, 1)  # (N * in, C, ...)
    inner = (stride[1:], pad[1:], dilation[1:], group)
    taps = [deconvolve(rows, weight[:, :, tap], None, *inner) for tap in range(weight.shape[2])]  # (N * in, O, ...)
    span = (x.shape[2] - 1) * stride[0] + 1
    length = span + dilation[0] * (len(taps) - 1)
    whole = x.new_zeros(x.shape[0], length, *taps[0].shape[1:])
    for tap, part in enumerate(taps):
        start = tap * dilation[0]
        whole[:, start : start + span : stride[0]] += part.view(x.shape[0], -1, *part.shape[1:])
    y: Tensor = whole[:, pad[0] : length - pad[0]].transpose(1, 2)
    return y if bias is None else y + bias.view(-1, *[1] * (y.ndim - 2))
