"""Convolution over any number of spatial axes, and what it shares with Deconvolution and Im2col."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from caffe_compat.errors import ConversionError
from caffe_compat.fillers import check_fillers
from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.layers.dec2013 import FOUR_AXES, check_fields
from caffe_compat.onnx_forms import reshape
from caffe_compat.python_forms import call, size
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

MOST_TORCH_AXES = 3
"""Spatial axes that torch and ONNX Runtime have kernels for."""

FIELDS_2013 = {"num_output", "bias_term", "weight_filler", "bias_filler", "pad", "kernel_size", "group", "stride"}


@dataclass(frozen=True)
class Geometry:
    """Where a kernel is applied: the channel axis, then one number per spatial axis behind it.

    Attributes:
        extent: what a dilated kernel covers.
        least: the smallest input that a whole kernel fits into.
    """

    axis: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]
    extent: tuple[int, ...] = field(init=False)
    least: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        extent = tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        object.__setattr__(self, "extent", extent)
        object.__setattr__(self, "least", tuple(e - 2 * p for e, p in zip(extent, self.pad, strict=True)))

    def down(self, sizes: Sequence[int]) -> Shape:
        """Sizes after a convolution, (in + 2 pad - extent) / stride + 1; division drops the fraction as C does."""
        steps = zip(sizes, self.least, self.stride, strict=True)
        return tuple((n - m) // s + 1 if n >= m else 1 - (m - n) // s for n, m, s in steps)

    def up(self, sizes: Sequence[int]) -> Shape:
        """Sizes after a deconvolution, stride (in - 1) + extent - 2 pad."""
        return tuple(s * (n - 1) + m for n, m, s in zip(sizes, self.least, self.stride, strict=True))

    def missing(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Zeros that Caffe reads behind each axis where a kernel too large still gives a position."""
        steps = zip(sizes, self.least, self.stride, strict=True)
        return tuple(m - n if 0 < m - n < s else 0 for n, m, s in steps)


def read_geometry(layer: Layer, bottom: Shape) -> Geometry:
    """The geometry of a layer with convolution_param (base_conv_layer.cpp and im2col_layer.cpp LayerSetUp).

    Raises:
        LayerError: sizes missing, given twice, zero, or not one for each spatial axis.
    """
    axis = layer.axis(layer.p.axis, len(bottom), "convolution_param.axis")
    spatial = len(bottom) - axis - 1
    kernel = _sizes(layer, "kernel", "kernel_size", spatial)
    stride = _sizes(layer, "stride", "stride", spatial, 1)
    pad = _sizes(layer, "pad", "pad", spatial, 0)
    dilation = _repeated(layer, "dilation", spatial, 1)
    for name, values in ("kernel_size", kernel), ("stride", stride), ("dilation", dilation):
        what = f"{name} {' x '.join(map(str, values))} must be positive"
        positive = all(value > 0 for value in values)
        layer.check(positive, what, field=f"convolution_param.{name}", remedy="make every size > 0")
    return Geometry(axis, kernel, stride, pad, dilation)


def _sizes(layer: Layer, stem: str, repeated: str, spatial: int, default: int | None = None) -> tuple[int, ...]:
    """One number for each spatial axis, from `stem_h` and `stem_w` or from the repeated field."""
    pair = (f"{stem}_h", f"{stem}_w")
    stated = [name for name in pair if layer.has(name)]
    if not stated:
        return _repeated(layer, repeated, spatial, default)
    field = f"convolution_param.{stated[0]}"
    what = f"{pair[0]} and {pair[1]} are for 2 spatial axes, the bottom has {spatial}"
    layer.check(spatial == 2, what, field=field, remedy=f"use {repeated}")
    layer.check(not layer.has(repeated), f"both {repeated} and {stated[0]} are given", field=field, remedy="keep one")
    return tuple(getattr(layer.p, name) for name in pair)


def _repeated(layer: Layer, name: str, spatial: int, default: int | None) -> tuple[int, ...]:
    given = tuple(getattr(layer.p, name))
    fits = len(given) in (1, spatial) or (not given and default is not None)
    what = f"{name} is given {len(given)} time(s) for {spatial} spatial axes"
    layer.check(fits, what, field=f"convolution_param.{name}", remedy="give one for all, or one for each")
    if len(given) == spatial:
        return given
    return (given or (default or 0,)) * spatial if len(given) <= 1 else given


class BaseConvolution(Layer):
    """What Convolution and Deconvolution share (base_conv_layer.cpp): parameters, their checks and shapes.

    Blobs: weight (out, in / group, kernel...), where Deconvolution swaps out and in; bias (num_output).
    """

    PARAM = "convolution_param"
    BOTTOMS: ClassVar[tuple[int, int | None]] = (1, None)
    TOPS: ClassVar[tuple[int, int | None]] = (1, None)
    BLOBS = ("weight", "bias")

    OP = ""
    """The operator in ONNX."""

    geometry: Geometry
    weight_shape: Shape

    def setup(self, bottoms: Sequence[Shape]) -> None:
        first, count = bottoms[0], len(bottoms)
        self.check(self.tops == count, f"{self.tops} top(s) for {count} bottom(s)", field="top", remedy="give as many")
        self.geometry = self.read_geometry(first)
        for position, shape in enumerate(bottoms):
            what = f"bottom {position} has shape {shape}, bottom 0 has {first}"
            self.check(shape == first, what, field=f"bottom[{position}]", remedy="make all bottoms alike")
        self._check_channels(first[self.geometry.axis])
        self.weight_shape = self.blob_shapes(bottoms)[0]
        check_fillers(self, self.blob_shapes(bottoms))
        self._arguments = self._torch_arguments()
        spatial = len(self.geometry.kernel)
        self._plain = self.geometry.axis == 1 and 1 <= spatial <= MOST_TORCH_AXES

    def read_geometry(self, bottom: Shape) -> Geometry:
        return read_geometry(self, bottom)

    def _check_channels(self, channels: int) -> None:
        outputs, group = self.p.num_output, self.p.group
        self.check(outputs > 0, f"num_output is {outputs}", field="convolution_param.num_output", remedy="make it > 0")
        self.check(group > 0, "group is 0", field="convolution_param.group", remedy="leave it out for one group")
        for what, count in (f"the bottom's {channels} channels", channels), (f"num_output {outputs}", outputs):
            remedy = "choose a group that divides both"
            fits = count % group == 0
            self.check(fits, f"group {group} does not divide {what}", field="convolution_param.group", remedy=remedy)

    def _torch_arguments(self) -> tuple[Any, ...]:
        """What torch's function takes after input, weight and bias."""
        raise NotImplementedError(self.TYPE)

    def in_out(self, channels: int) -> tuple[int, int]:
        """(out, in) of the weight, before grouping."""
        raise NotImplementedError(self.TYPE)

    def sizes(self, sizes: Sequence[int]) -> Shape:
        """Spatial sizes of the tops."""
        raise NotImplementedError(self.TYPE)

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        out, into = self.in_out(bottoms[0][self.geometry.axis])
        shapes: list[Shape] = [(out, into // self.p.group, *self.geometry.kernel)]
        return [*shapes, (self.p.num_output,)] if self.p.bias_term else shapes

    def fillers(self) -> list[pb.FillerParameter]:
        return [self.p.weight_filler, self.p.bias_filler][: 2 if self.p.bias_term else 1]

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        axis = self.geometry.axis
        shape = (*bottoms[0][:axis], self.p.num_output, *self.sizes(bottoms[0][axis + 1 :]))
        return [shape] * self.tops

    def _positions(self, shape: Shape) -> int:
        """Items times spatial positions of a blob."""
        return prod(shape[: self.geometry.axis]) * prod(shape[self.geometry.axis + 1 :])

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        weight, bias = blobs if len(blobs) > 1 else (blobs[0], None)
        run = self.run if self._plain else self._reshaped
        return [run(x, weight, bias) for x in bottoms]

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute (N, C, sizes...) -> (N, O, sizes...)."""
        raise NotImplementedError(self.TYPE)

    def _reshaped(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`run` with the axes before the channels as one, and with one position where there is no spatial axis."""
        axis = self.geometry.axis
        folded = x.reshape(prod(x.shape[:axis]), *x.shape[axis:])
        if x.ndim == axis + 1:
            folded, weight = folded[..., None], weight[..., None]
        y = self.run(folded, weight, bias)
        return y.reshape(*x.shape[:axis], *y.shape[1 : x.ndim - axis + 1])

    # -- ONNX ----------------------------------------------------------------------------------------------

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        if not self._plain:
            return super().to_python(w, bottoms)
        called = self.python_calls(w, bottoms)
        return called[0] if len(called) == 1 else f"({', '.join(called)})"

    def python_calls(self, w: PythonWriter, bottoms: list[str]) -> list[str]:
        """An expression for each top."""
        out, into = self.in_out(self.bottom_shapes[0][1])
        made = w.module(
            call(
                f"nn.{self.OP}{len(self.geometry.kernel)}d",
                *map(str, (into, out) if self.OP == "Conv" else (out, into)),
                kernel_size=size(self.geometry.kernel),
                **self.python_arguments(),
                bias=None if self.p.bias_term else "False",
            )
        )
        return [f"{made}({bottom})" for bottom in bottoms]

    def python_arguments(self) -> dict[str, str | None]:
        """What is not as usual, named as torch's modules and functions name it."""
        geo, groups = self.geometry, self._arguments[3]
        stated = (("stride", geo.stride, 1), ("padding", geo.pad, 0), ("dilation", geo.dilation, 1))
        named = {name: size(values) for name, values, usual in stated if set(values) != {usual}}
        return {**named, "groups": None if groups == 1 else str(groups)}

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        spatial = len(self.geometry.kernel)
        if spatial > MOST_TORCH_AXES:
            what = f"{self.TYPE} over {spatial} spatial axes; runtimes have kernels for {MOST_TORCH_AXES}"
            raise ConversionError(what, where=self.where(), remedy="convert to PyTorch (.safetensors)")
        for bottom, top, before, after in zip(bottoms, tops, self.bottom_shapes, self.top_shapes_built, strict=True):
            self._write(g, (bottom, before), (top, after), blobs)

    def _write(self, g: OnnxWriter, bottom: tuple[str, Shape], top: tuple[str, Shape], blobs: list[str]) -> None:
        """One Conv or ConvTranspose, between Reshapes where the blobs are not (N, C, sizes...)."""
        axis, (name, shape) = self.geometry.axis, bottom
        if self._plain:
            g.op(self.OP, [name, *blobs], [top[0]], **self.onnx_attributes(shape[2:]))
            return
        sizes = shape[axis + 1 :] or (1,)
        folded = reshape(g, name, (-1 if axis else 1, shape[axis], *sizes))
        weights = [self._flat_weight(g, blobs[0]), *blobs[1:]]
        y = g.op(self.OP, [*folded, *weights], **self.onnx_attributes(shape[axis + 1 :]))
        reshape(g, y[0], (-1, *top[1][1:]) if axis else top[1], [top[0]])

    def _flat_weight(self, g: OnnxWriter, weight: str) -> str:
        """The weight with at least one spatial axis."""
        if self.geometry.kernel:
            return weight
        return reshape(g, weight, (*self.weight_shape, 1))[0]

    def onnx_attributes(self, sizes: Shape) -> dict[str, Any]:
        """Attributes of Conv and ConvTranspose; one position where there is no spatial axis."""
        geo = self.geometry
        if not sizes:
            return {"kernel_shape": [1], "group": self.p.group}
        return {
            "kernel_shape": list(geo.kernel),
            "strides": list(geo.stride),
            "pads": [*geo.pad, *geo.pad],
            "dilations": list(geo.dilation),
            "group": self.p.group,
        }


@register
class Convolution(BaseConvolution):
    """Cross-correlation by group, plus bias (conv_layer.cpp, base_conv_layer.cpp, im2col.cpp).

    top[n, o, i] = bias[o] + sum over k and the channels c of o's group of
                   weight[o, c, k] bottom[n, c, i stride - pad + k dilation]

    Axes before `axis` are items, those behind it spatial; bottom outside its bounds is 0.
    out = (in + 2 pad - (dilation (kernel - 1) + 1)) / stride + 1, where C's division drops the fraction: a kernel that
    is less than one stride too large still gives one position, and reads zeros behind the end.
    """

    TYPE = "Convolution"
    FROM_ONNX = True
    OUTPUT_FREE = True
    FORK_FIELDS: ClassVar[tuple[str, ...]] = ("convolution_param.weight_filler.alpha",)
    V1 = ("CONVOLUTION",)
    V0 = ("conv",)
    OP = "Conv"

    def in_out(self, channels: int) -> tuple[int, int]:
        return self.p.num_output, channels

    def sizes(self, sizes: Sequence[int]) -> Shape:
        return self.geometry.down(sizes)

    def macs(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        return sum(self._positions(top) for top in tops) * prod(self.weight_shape)

    def _torch_arguments(self) -> tuple[Any, ...]:
        geo = self.geometry
        self._always_fits = all(m <= 1 for m in geo.least)
        return geo.stride or 1, geo.pad or 0, geo.dilation or 1, self.p.group

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        import torch

        if not self._always_fits:
            x = self._fitted(x)
        if x.ndim == 4:
            if not x.is_contiguous() and not weight.is_contiguous(memory_format=torch.channels_last):
                x = x.contiguous()  # one order for both: torch would bring the weight into that of x in each run
            return torch.conv2d(x, weight, bias, *self._arguments)
        return convolve(x, weight, bias, *self._arguments)

    def _fitted(self, x: Tensor) -> Tensor:
        """The input with the zeros behind it that the largest kernel reads."""
        import torch

        missing = self.geometry.missing(x.shape[2:])
        return torch.nn.functional.pad(x, _pad_argument(missing)) if any(missing) else x

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        if any(self.geometry.missing(self.bottom_shapes[0][self.geometry.axis + 1 :])):
            return Layer.to_python(self, w, bottoms)  # torch refuses a kernel that is too large
        return super().to_python(w, bottoms)

    def onnx_attributes(self, sizes: Shape) -> dict[str, Any]:
        attributes = super().onnx_attributes(sizes)
        if sizes:
            ends = zip(self.geometry.pad, self.geometry.missing(sizes), strict=True)
            attributes["pads"] = [*self.geometry.pad, *(p + m for p, m in ends)]
        return attributes


def _pad_argument(behind: Sequence[int]) -> list[int]:
    """torch's order: last axis first, (before, after)."""
    return [n for size in reversed(behind) for n in (0, size)]


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, pad: Any, dilation: Any, group: int
) -> Tensor:
    """Convolution over any number of spatial axes: beyond torch's kernels, a sum over the taps of the first."""
    import torch

    if weight.ndim - 2 <= MOST_TORCH_AXES:
        function: Any = (torch.conv1d, torch.conv2d, torch.conv3d)[weight.ndim - 3]
        return function(x, weight, bias, stride, pad, dilation, group)  # type: ignore[no-any-return]
    x = torch.nn.functional.pad(x, [0, 0] * (weight.ndim - 3) + [pad[0], pad[0]])
    out = (x.shape[2] - dilation[0] * (weight.shape[2] - 1) - 1) // stride[0] + 1
    total: Any = 0
    for tap in range(weight.shape[2]):
        start = tap * dilation[0]
        rows = x[:, :, start : start + (out - 1) * stride[0] + 1 : stride[0]].transpose(1, 2)  # (N, out, C, ...)
        inner = (stride[1:], pad[1:], dilation[1:], group)
        total = total + convolve(rows.flatten(0, 1), weight[:, :, tap], None, *inner)
    y: Tensor = total.reshape(x.shape[0], out, *total.shape[1:]).transpose(1, 2)
    return y if bias is None else y + bias.view(-1, *[1] * (y.ndim - 2))


@register
class Convolution2013(Convolution):
    """Convolution of 3213bd87e (conv_layer.cpp): square kernel over (N, C, H, W), and `pad` has no effect.

    out = floor((in - kernel) / stride) + 1. Blobs: weight (O, C / group, k, k), bias (1, 1, 1, O).
    """

    PROFILES = ("dec2013",)
    BOTTOMS = (1, 1)
    TOPS = (1, 1)

    def read_geometry(self, bottom: Shape) -> Geometry:
        return read_geometry_2013(self, bottom)

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        weight, *bias = super().blob_shapes(bottoms)
        return [weight, *((1, 1, 1, *shape) for shape in bias)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return super().forward(bottoms, [blobs[0], *(bias.flatten() for bias in blobs[1:])])

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        biases = [reshape(g, bias, (-1,))[0] for bias in blobs[1:]]
        super().to_onnx(g, bottoms, tops, [blobs[0], *biases])


def read_geometry_2013(layer: Layer, bottom: Shape) -> Geometry:
    """The geometry of conv and im2col at 3213bd87e: (H, W), square, unpadded.

    Raises:
        LayerError: a field that did not exist then, a bottom without four axes, or a kernel larger than the bottom.
    """
    check_fields(layer, FIELDS_2013)
    layer.check(len(bottom) == 4, f"the bottom has shape {bottom}", field="bottom", remedy=FOUR_AXES)
    kernel = _repeated(layer, "kernel_size", 1, None) * 2
    stride = _repeated(layer, "stride", 1, 1) * 2
    for name, values in ("kernel_size", kernel), ("stride", stride):
        layer.check(values[0] > 0, f"{name} is 0", field=f"convolution_param.{name}", remedy="make it > 0")
    what = f"kernel {kernel[0]} is larger than the bottom, {bottom[2]} x {bottom[3]}"
    fits = kernel[0] <= min(bottom[2:])
    layer.check(fits, what, field="convolution_param.kernel_size", remedy="use a smaller kernel")
    return Geometry(1, kernel, stride, (0, 0), (1, 1))
