"""ConvolutionDepthwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caffe_compat.fillers import check_fillers
from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.convolution import Convolution, Geometry
from caffe_compat.layers.legacy_axes import legacy_sizes


@register
class ConvolutionDepthwise(Convolution):
    """Each channel is convolved with a kernel of its own (conv_dw_layer.cpp of openvinotoolkit/training_toolbox_caffe).

    top[n, c, i] = bias[c] + sum over k of weight[c, 0, k] bottom[n, c, i stride - pad + k dilation]

    Height and width come from <name>_h and <name>_w when both are stated, else from the first two entries of the
    repeated field, of which one stands for both; kernel and stride have no default. More than two entries of pad are
    no padding. `num_output`, `group` and `axis` mean nothing. Blobs: weight (C, 1, kh, kw), bias (C).
    """

    TYPE = "ConvolutionDepthwise"
    V1 = ()  # type: ignore[assignment]
    V0 = ()  # type: ignore[assignment]
    DIALECTS = ("openvino",)
    BOTTOMS = (1, 1)
    TOPS = (1, 1)

    def notes(self) -> list[str]:
        count, other = self.p.num_output, self.has("num_output") and self.p.num_output != self.channels
        return [f"num_output {count} has no effect; the top has {self.channels} channels"] if other else []

    def setup(self, bottoms: Sequence[Shape]) -> None:
        shape = bottoms[0]
        what = f"the bottom has shape {shape}; four axes are needed"
        self.check(len(shape) == 4, what, field="bottom[0]", remedy="reshape it to (N, C, H, W)")
        self.channels = shape[1]
        self.geometry = self.read_geometry(shape)
        self.weight_shape = self.blob_shapes(bottoms)[0]
        check_fillers(self, self.blob_shapes(bottoms))
        self._arguments = self._torch_arguments()
        self._plain = True

    def read_geometry(self, bottom: Shape) -> Geometry:
        kernel, stride = self._stated("kernel", "kernel_size"), self._stated("stride", "stride")
        given = list(self.p.pad)
        both = self.has("pad_h") and self.has("pad_w")
        pad = self._stated("pad", "pad") if both or 0 < len(given) <= 2 else (0, 0)
        dilation = tuple((*self.p.dilation, *self.p.dilation)[:2]) or (1, 1)
        for name, values in ("kernel_size", kernel), ("stride", stride), ("dilation", dilation):
            what = f"{name} {' x '.join(map(str, values))} must be positive"
            self.check(min(values) > 0, what, field=f"convolution_param.{name}", remedy="make both sizes > 0")
        return Geometry(1, kernel, stride, pad, dilation)

    def _stated(self, stem: str, repeated: str) -> tuple[int, int]:
        if self.has(f"{stem}_h") and self.has(f"{stem}_w"):
            return getattr(self.p, f"{stem}_h"), getattr(self.p, f"{stem}_w")
        given = list(getattr(self.p, repeated))
        what = f"{repeated} is missing; {self.TYPE} has no default"
        self.check(bool(given), what, field=f"convolution_param.{repeated}", remedy=f"state {repeated}")
        return given[0], given[min(1, len(given) - 1)]

    def in_out(self, channels: int) -> tuple[int, int]:
        return channels, channels

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        shapes: list[Shape] = [(self.channels, 1, *self.geometry.kernel)]
        return [*shapes, (self.channels,)] if self.p.bias_term else shapes

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        n, channels, *sizes = legacy_sizes(self, bottoms)
        what = f"the bottom has {channels} channels, the weight {self.channels}"
        self.check(channels == self.channels, what, field="bottom[0]", remedy="build the net for this bottom")
        what = f"kernel {self.geometry.extent} is larger than the padded bottom of shape {bottoms[0]}"
        fits = all(size >= least for size, least in zip(sizes, self.geometry.least, strict=True))
        self.check(fits, what, field="convolution_param.kernel_size", remedy="use a smaller kernel")
        return [(n, channels, *self.geometry.down(sizes))]

    def _torch_arguments(self) -> tuple[Any, ...]:
        return (*super()._torch_arguments()[:3], self.channels)

    def onnx_attributes(self, sizes: Shape) -> dict[str, Any]:
        return {**super().onnx_attributes(sizes), "group": self.channels}
