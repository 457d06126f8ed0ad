"""Convolution3D, Deconvolution3D and NdConvolution: convolution of videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.layers.convolution import BaseConvolution, Convolution
from caffe_compat.layers.deconvolution import Deconvolution
from caffe_compat.onnx_forms import reshape
from caffe_compat.python_forms import call
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

FIELDS = tuple(f"convolution_param.{n}" for n in ("kernel_depth", "temporal_stride", "temporal_pad", "filter_group"))


def check_video(layer: Layer, bottoms: Sequence[Shape]) -> None:
    """The bottom is (N, C, frames, H, W)."""
    what = f"the bottom has shape {bottoms[0]}; five axes are needed"
    layer.check(len(bottoms[0]) == 5, what, field="bottom[0]", remedy="feed (N, C, frames, H, W)")


class OfVideo(BaseConvolution):
    """What both layers of C3D add: one size for height and width, another for frames; bias (1, 1, 1, 1, num_output)."""

    PARAM = "convolution3d_param"
    FORK_FIELDS = FIELDS
    BOTTOMS = (1, 1)
    TOPS = (1, 1)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        check_video(self, bottoms)
        self.p = plain(self.p if self.param.HasField("convolution3d_param") else self.param.convolution_param)
        super().setup(bottoms)

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        shapes = super().blob_shapes(bottoms)
        return [*shapes[:1], *((1, 1, 1, 1, *bias) for bias in shapes[1:])]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return super().forward(bottoms, [*blobs[:1], *(bias.flatten() for bias in blobs[1:])])

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        super().to_onnx(g, bottoms, tops, [*blobs[:1], *(reshape(g, bias, (-1,))[0] for bias in blobs[1:])])

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        return super().to_python(w, bottoms)

    def python_calls(self, w: PythonWriter, bottoms: list[str]) -> list[str]:
        if not self.p.bias_term:
            return super().python_calls(w, bottoms)
        weight, bias = map(str, self.blob_shapes(self.bottom_shapes))
        kept = w.module(call(w.part("Blobs"), weight=weight, bias=bias))  # torch's modules have the bias flat
        function = "F.conv3d" if self.OP == "Conv" else "F.conv_transpose3d"
        arguments = f"{kept}.weight", f"{kept}.bias.flatten()"
        return [call(function, bottom, *arguments, **self.python_arguments()) for bottom in bottoms]


def plain(stated: Any) -> pb.ConvolutionParameter:
    """The parameters of C3D's convolutions as those of a convolution over three axes."""
    repeated = stated.DESCRIPTOR.name == "ConvolutionParameter"
    size, stride, pad = (
        next(iter(value), default) if repeated else value
        for value, default in ((stated.kernel_size, 0), (stated.stride, 1), (stated.pad, 0))
    )
    return pb.ConvolutionParameter(
        num_output=stated.num_output,
        bias_term=stated.bias_term,
        kernel_size=(stated.kernel_depth, size, size),
        stride=(stated.temporal_stride, stride, stride),
        pad=(stated.temporal_pad, pad, pad),
        weight_filler=stated.weight_filler,
        bias_filler=stated.bias_filler,
    )


@register
class Convolution3D(OfVideo, Convolution):
    """Convolution over frames, height and width (convolution3d_layer.cpp of facebookarchive/C3D).

    The kernel has kernel_depth frames of kernel_size x kernel_size; temporal_stride and temporal_pad are those of
    frames. `group` and `filter_group` change nothing. C3D v1.0 states all this in `convolution_param`.
    """

    TYPE = "Convolution3D"
    V1 = ()  # type: ignore[assignment]
    V0 = ()  # type: ignore[assignment]
    DIALECTS = ("c3d", "c3d-v1.0")


@register
class Deconvolution3D(OfVideo, Deconvolution):
    """The transpose of Convolution3D (deconvolution3d_layer.cpp of facebookarchive/C3D)."""

    TYPE = "Deconvolution3D"
    V1 = ()  # type: ignore[assignment]
    DIALECTS = ("c3d", "c3d-v1.0")


@register
class NdConvolution(Convolution):
    """Convolution with the kernel, stride and padding of each axis in blob shapes.

    `kernel_shape` must be stated; stride is 1, padding 0 for all axes unless stated. Source: cudnn_ndconv_layer.cpp of
    chuckcho/video-caffe.
    """

    TYPE = "NdConvolution"
    V1 = ()  # type: ignore[assignment]
    V0 = ()  # type: ignore[assignment]
    DIALECTS = ("video-caffe",)
    FORK_FIELDS = tuple(f"convolution_param.{name}" for name in ("kernel_shape", "stride_shape", "pad_shape"))

    def setup(self, bottoms: Sequence[Shape]) -> None:
        kernel, stride, pad = read_shapes(self, bottoms[0])
        stated, self.p = self.p, pb.ConvolutionParameter(kernel_size=kernel, stride=stride, pad=pad)
        for name in ("num_output", "bias_term", "group"):
            setattr(self.p, name, getattr(stated, name))
        self.p.weight_filler.CopyFrom(stated.weight_filler)
        self.p.bias_filler.CopyFrom(stated.bias_filler)
        super().setup(bottoms)


def read_shapes(layer: Layer, bottom: Shape) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """kernel_shape, stride_shape and pad_shape of a layer, one size for each axis behind the channels."""
    kernel = list(layer.p.kernel_shape.dim)
    axes = len(bottom) - 2
    for name, size in (("kernel_shape", len(kernel)), ("stride_shape", axes), ("pad_shape", axes)):
        given = list(getattr(layer.p, name).dim) or [1] * size
        what = f"{name} has {len(given) if layer.has(name) else 0} sizes for {axes} spatial axes"
        fits = len(given) == axes and (layer.has(name) or name != "kernel_shape")
        layer.check(fits, what, field=f"{layer.PARAM}.{name}", remedy="state one for each axis behind the channels")
        positive = min(given) >= (0 if name == "pad_shape" else 1)
        layer.check(positive, f"{name} {given}", field=f"{layer.PARAM}.{name}", remedy="use positive sizes")
    stride, pad = list(layer.p.stride_shape.dim) or [1] * axes, list(layer.p.pad_shape.dim) or [0] * axes
    return kernel, stride, pad
