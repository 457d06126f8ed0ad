"""Kernels, strides and pads as ONNX states them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from caffe_compat.layers.convolution import Geometry
from converters.importing.padding import Sides
from converters.importing.program import Op, Shape

MAX_WINDOW = 2**31 - 1


@dataclass(frozen=True)
class Windows:
    """Where a kernel is applied; one number, or pair (before, after), for each spatial axis.

    Attributes:
        sizes: of the bottom, without any pads.
        ceil: a last window that does not fit counts.
    """

    sizes: Shape
    kernel: Shape
    stride: Shape
    dilation: Shape
    pads: tuple[Sides, ...]
    ceil: bool = False

    @property
    def extent(self) -> Shape:
        """What the dilated kernel covers."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def outputs(self) -> Shape:
        """How many windows ONNX counts."""
        counts = []
        for size, extent, step, (before, after) in zip(self.sizes, self.extent, self.stride, self.pads, strict=True):
            room = size + before + after - extent
            number = (-(-room // step) if self.ceil else room // step) + 1
            if self.ceil and (number - 1) * step >= size + before:
                number -= 1  # a window that starts in the padding behind is left out
            counts.append(number)
        return tuple(counts)

    def caffe(self, pad: Sequence[int]) -> Geometry:
        """The same kernel with Caffe's pads."""
        return Geometry(1, self.kernel, self.stride, tuple(pad), self.dilation)

    def wider(self, pads: Sequence[Sides]) -> Windows:
        """With more pads."""
        added = zip(self.pads, pads, strict=True)
        return replace(self, pads=tuple((a + before, z + after) for (a, z), (before, after) in added))


def read_windows(op: Op, sizes: Shape, kernel: Sequence[int]) -> Windows:
    """The geometry of a convolution or pooling over a bottom of these spatial sizes.

    Raises:
        ConversionError: lists of another length, or sizes that are not positive.
    """
    rank = len(sizes)
    stride, dilation = (_list(op, name, rank, 1) for name in ("strides", "dilations"))
    kernel = tuple(int(size) for size in op.get("kernel_shape", kernel))
    if len(kernel) != rank or not all(0 < n <= MAX_WINDOW for n in (*kernel, *stride, *dilation)):
        what = f"kernel {list(kernel)}, strides {list(stride)}, dilations {list(dilation)} over {rank} axes"
        raise op.refuse(what, "check the model with onnx.checker")
    made = Windows(sizes, kernel, stride, dilation, ((0, 0),) * rank, bool(op.get("ceil_mode", 0)))
    made = replace(made, pads=_pads(op, made))
    if min(made.outputs, default=1) < 1:
        raise op.refuse(f"a kernel of {list(kernel)} is larger than its input of {list(sizes)}", "feed a larger input")
    return made


def _list(op: Op, name: str, rank: int, default: int) -> Shape:
    values = tuple(int(value) for value in op.get(name, [default] * rank))
    if len(values) != rank:
        raise op.refuse(f"{name} {list(values)} for {rank} spatial axes", "check the model with onnx.checker")
    return values


def _pads(op: Op, windows: Windows) -> tuple[Sides, ...]:
    rank, auto = len(windows.sizes), op.get("auto_pad", "NOTSET") or "NOTSET"
    if auto == "NOTSET":
        values = _list(op, "pads", 2 * rank, 0)
        if not 0 <= min(values, default=0) <= max(values, default=0) <= MAX_WINDOW:
            raise op.refuse(
                f"pads {list(values)}", "check the model; cut the input with a Slice instead of by pads < 0"
            )
        return tuple(zip(values[:rank], values[rank:], strict=True))
    if auto == "VALID":
        return windows.pads
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise op.refuse(f'auto_pad "{auto}"', "check the model with onnx.checker")
    pads = []
    for size, extent, step in zip(windows.sizes, windows.extent, windows.stride, strict=True):
        total = max(0, (-(-size // step) - 1) * step + extent - size)
        pads.append((total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2))
    return tuple(pads)


def stated(name: str, values: Sequence[int], default: int | None = None) -> dict[str, object]:
    """A field of convolution_param with one value for all axes, or one each; {} for the default."""
    if all(value == default for value in values):
        return {}
    return {name: list(values[:1]) if len(set(values)) == 1 else list(values)}


def pair(stem: str, values: Sequence[int], default: int | None = None, single: str = "") -> dict[str, object]:
    """A field of pooling_param: one number, or `_h` and `_w`; {} for the default."""
    if all(value == default for value in values):
        return {}
    if len(set(values)) == 1:
        return {single or stem: values[0]}
    return {f"{stem}_h": values[0], f"{stem}_w": values[1]}
