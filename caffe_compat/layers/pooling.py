"""Pooling over (N, C, H, W), and the windows that LRN and SPP share with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import ConversionError
from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.layers.dec2013 import check_fields
from caffe_compat.onnx_forms import FLOAT
from caffe_compat.python_forms import call
from caffe_compat.python_forms import size as size_text

if TYPE_CHECKING:
    from torch import Tensor

FLT_MAX = 3.4028234663852886e38
FLT_MIN = 1.1754943508222875e-38
MAX_COUNT = 2**31 - 1
"""Elements that a blob may have (blob.cpp Reshape)."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Where a pooling layer looks; pairs are (h, w).

    Attributes:
        kernel, stride, pad: as in the net.
        ceil: an incomplete last window counts (round_mode CEIL).
        narrow: torch takes the padding, at most half a kernel. Its windows are then these, without empty ones.
        dense: no window can be empty.
    """

    kernel: Pair
    stride: Pair
    pad: Pair
    ceil: bool = True
    narrow: bool = field(init=False)
    dense: bool = field(init=False)

    def __post_init__(self) -> None:
        near = all(s <= k for s, k in zip(self.stride, self.kernel, strict=True))
        object.__setattr__(self, "narrow", all(2 * p <= k for p, k in zip(self.pad, self.kernel, strict=True)))
        object.__setattr__(self, "dense", near or any(self.pad) or not self.ceil)

    def output(self, size: Sequence[int]) -> Pair:
        """(H, W) of the top (PoolingLayer::Reshape)."""
        h, w = (self._count(axis, size[axis]) for axis in (0, 1))
        return h, w

    def _count(self, axis: int, size: int) -> int:
        kernel, stride, pad = self.kernel[axis], self.stride[axis], self.pad[axis]
        room = size + 2 * pad - kernel
        count = (-(-room // stride) if self.ceil else room // stride) + 1
        if any(self.pad) and (count - 1) * stride >= size + pad:
            count -= 1  # with padding the last window must start inside (pooling_layer.cpp Reshape)
        return count

    def empty(self, size: Sequence[int]) -> Pair:
        """How many windows, the last or none, lie behind the bottom altogether (unpadded, stride > kernel)."""
        out = self.output(size)
        h, w = (int(n > 0 and (n - 1) * self.stride[i] - self.pad[i] >= size[i]) for i, n in enumerate(out))
        return h, w

    def behind(self, size: Sequence[int]) -> Pair:
        """How far the last window that is not empty reaches beyond the bottom; may be negative."""
        last = [n - missing - 1 for n, missing in zip(self.output(size), self.empty(size), strict=True)]
        h, w = (n * self.stride[i] + self.kernel[i] - self.pad[i] - size[i] for i, n in enumerate(last))
        return h, w

    def divisors(self, size: Sequence[int]) -> NDArray[np.int64]:
        """What AVE divides each window's sum by, (H, W) of the top: its size inside the padded bottom."""
        lengths = []
        for axis, count in enumerate(self.output(size)):
            start = np.arange(count, dtype=np.int64) * self.stride[axis] - self.pad[axis]
            lengths.append(np.minimum(start + self.kernel[axis], size[axis] + self.pad[axis]) - start)
        return lengths[0][:, None] * lengths[1]


# -- torch -----------------------------------------------------------------------------------------------------


def max_pool(x: Tensor, window: Window) -> Tensor:
    """Maxima; the gradient goes to the first maximum of a window, an empty window gives -FLT_MAX."""
    import torch

    if not window.narrow:
        return torch.max_pool2d(_padded(x, window, -FLT_MAX), window.kernel, window.stride)
    y = torch.max_pool2d(x, window.kernel, window.stride, window.pad, 1, window.ceil)
    return y if window.dense else _with_empty(y, x, window, -FLT_MAX)


def max_pool_with_mask(x: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Maxima and their places h * W + w, -1 for an empty window; both of x's dtype."""
    from torch.nn.functional import max_pool2d_with_indices

    if window.narrow:
        y, places = max_pool2d_with_indices(x, window.kernel, window.stride, window.pad, (1, 1), window.ceil)
        y, mask = (_with_empty(t, x, window, fill) for t, fill in ((y, -FLT_MAX), (places.to(x.dtype), -1.0)))
        return y, mask
    padded = _padded(x, window, -FLT_MAX)
    y, places = max_pool2d_with_indices(padded, window.kernel, window.stride)
    row = places // padded.shape[3] - window.pad[0]
    column = places % padded.shape[3] - window.pad[1]
    return y, (row * x.shape[3] + column).to(x.dtype)


def ave_pool(x: Tensor, window: Window) -> Tensor:
    """Means over the part of each window inside the padded bottom; an empty window gives 0 / 0 or 0."""
    import torch
    from torch.nn.functional import avg_pool2d

    size = x.shape[2:]
    if window.narrow and (window.dense or not any(window.empty(size))):
        return avg_pool2d(x, window.kernel, window.stride, window.pad, window.ceil)
    if window.narrow:
        sums = avg_pool2d(x, window.kernel, window.stride, ceil_mode=True, divisor_override=1)
        sums = _with_empty(sums, x, window, 0.0)
    else:
        sums = avg_pool2d(_padded(x, window, 0.0), window.kernel, window.stride, divisor_override=1)
    return sums / torch.as_tensor(window.divisors(size), dtype=x.dtype, device=x.device)


def _with_empty(y: Tensor, x: Tensor, window: Window, value: float) -> Tensor:
    """The pooled values of x with the empty windows, which torch leaves out."""
    from torch.nn.functional import pad

    rows, columns = window.empty(x.shape[2:])
    return pad(y, [0, columns, 0, rows], value=value) if rows or columns else y


def windows(x: Tensor, window: Window) -> Tensor:
    """The values of each window that is not empty, row by row, 0 outside the bottom: (N, C, H, W, kernel h * w)."""
    (kh, kw), (sh, sw) = window.kernel, window.stride
    return _padded(x, window, 0.0).unfold(2, kh, sh).unfold(3, kw, sw).flatten(4)


def _padded(x: Tensor, window: Window, value: float) -> Tensor:
    """The bottom with everything that windows reach beyond it, and without what they do not reach."""
    from torch.nn.functional import pad

    below, right = window.behind(x.shape[2:])
    height, width = x.shape[2] + window.pad[0] + below, x.shape[3] + window.pad[1] + right
    if x.shape[0] * x.shape[1] * height * width > MAX_COUNT:
        raise ValueError(f"its padding makes planes of {height} x {width}, beyond the {MAX_COUNT} elements of a blob")
    return pad(x, [window.pad[1], right, window.pad[0], below], value=value)


def stochastic_test(x: Tensor, window: Window, least: float | None = None) -> Tensor:
    """sum(x^2) / sum(x), the expected value of a draw; 0 where sum(x) <= 0, or with `least` added to the sum."""
    values = windows(x, window)
    total, squares = values.sum(-1), values.square().sum(-1)
    if least is not None:
        return _with_empty(squares / (least + total), x, window, 0.0)
    return _with_empty((squares / total.where(total > 0, 1)).where(total > 0, 0), x, window, 0.0)


def stochastic_train(x: Tensor, window: Window, draws: Any = None) -> Tensor:
    """Draw from each window with probability proportional to the values, which must not be negative.

    `draws` gives the uniform numbers of (0, 1], one for each element of the top; without them they are fresh.
    """
    import torch

    values = windows(x, window)
    sums = values.detach().cumsum(-1)
    fresh = draws is None
    u = 1 - torch.rand_like(sums[..., 0]) if fresh else torch.as_tensor(draws)[..., : sums.shape[2], : sums.shape[3]]
    reached = sums >= (u.to(sums) * sums[..., -1]).unsqueeze(-1)
    chosen = reached.byte().argmax(-1, keepdim=True)
    return _with_empty(values.gather(-1, chosen).squeeze(-1), x, window, 0.0)


@cache
def _tied_function() -> Any:
    """The autograd function of dec2013's maxima."""
    import torch
    from torch.autograd.function import once_differentiable

    class TiedMax(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, window: Window, left: list[Tensor]) -> Tensor:
            y = max_pool(x, window)
            ctx.save_for_backward(x, y)
            ctx.window, ctx.left = window, left
            return y

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
            x, y = ctx.saved_tensors
            return _spread_over_ties(x, ctx.left[-1] if ctx.left else y, grad, ctx.window), None, None

    return TiedMax


def _spread_over_ties(x: Tensor, y: Tensor, grad: Tensor, window: Window) -> Tensor:
    """Give the whole gradient of each window to everything in it that equals its maximum."""
    (kh, kw), (sh, sw) = window.kernel, window.stride
    out = x.new_zeros(x.shape)
    for i in range(min(kh, x.shape[2])):
        for j in range(min(kw, x.shape[3])):
            cells = x[:, :, i::sh, j::sw][:, :, : y.shape[2], : y.shape[3]]
            h, w = cells.shape[2:]
            out[:, :, i::sh, j::sw][:, :, :h, :w] += grad[:, :, :h, :w] * (cells == y[:, :, :h, :w])
    return out


# -- ONNX ------------------------------------------------------------------------------------------------------


def write_max_pool(
    g: OnnxWriter, bottom: str, size: Sequence[int], window: Window, tops: Sequence[str] | int = 1
) -> list[str]:
    """MaxPool over a bottom of spatial size `size`. Returns the top."""
    if _fits_all(g, window):
        return g.op("MaxPool", [bottom], tops, **_open_attributes(window))
    if not any(window.empty(size)):
        return g.op("MaxPool", [bottom], tops, **_attributes(window, size))
    return _write_empty(g, g.op("MaxPool", [bottom], **_attributes(window, size))[0], size, window, -FLT_MAX, tops)


def write_ave_pool(
    g: OnnxWriter, bottom: str, size: Sequence[int], window: Window, tops: Sequence[str] | int = 1
) -> list[str]:
    """AveragePool that counts its padding, corrected where Caffe's divisor is not the whole kernel."""
    if _fits_all(g, window):
        return g.op("AveragePool", [bottom], tops, **_open_attributes(window), count_include_pad=1)
    kernel = window.kernel[0] * window.kernel[1]
    divisors = window.divisors(size)
    if (divisors == kernel).all():
        return write_kernel_mean(g, bottom, size, window, tops)
    mean = write_kernel_mean(g, bottom, size, window)
    with np.errstate(divide="ignore"):
        correction = np.float32(kernel) / divisors.astype(np.float32)
    return g.op("Mul", [*mean, g.constant(correction)], tops)


def write_kernel_mean(
    g: OnnxWriter, bottom: str, size: Sequence[int], window: Window, tops: Sequence[str] | int = 1
) -> list[str]:
    """AveragePool that divides every window, whole or not, by the kernel's size."""
    attributes = {**_attributes(window, size), "count_include_pad": 1}
    if not any(window.empty(size)):
        return g.op("AveragePool", [bottom], tops, **attributes)
    return _write_empty(g, g.op("AveragePool", [bottom], **attributes)[0], size, window, 0.0, tops)


def _fits_all(g: OnnxWriter, window: Window) -> bool:
    """Whether to use the form for bottoms of any size; there is none for windows that may be empty."""
    return g.open_size and window.narrow and window.dense


def _open_attributes(window: Window) -> dict[str, Any]:
    """Attributes with which runtimes count windows as Caffe does, a last one that starts inside included."""
    pads, ceil = [*window.pad, *window.pad], int(window.ceil)
    return {"kernel_shape": list(window.kernel), "strides": list(window.stride), "pads": pads, "ceil_mode": ceil}


def _attributes(window: Window, size: Sequence[int]) -> dict[str, Any]:
    """Attributes under which ONNX, rounding down, has Caffe's windows but the empty ones."""
    below, right = (max(0, reach) for reach in window.behind(size))
    pads = [*window.pad, below, right]
    return {"kernel_shape": list(window.kernel), "strides": list(window.stride), "pads": pads}


def _write_empty(
    g: OnnxWriter, top: str, size: Sequence[int], window: Window, value: float, tops: Sequence[str] | int
) -> list[str]:
    """Append the empty windows."""
    pads = np.array([0, 0, 0, 0, 0, 0, *window.empty(size)], np.int64)
    return g.op("Pad", [top, g.constant(pads), _scalar(g, value)], tops, mode="constant")


def _scalar(g: OnnxWriter, value: float) -> str:
    return g.constant(np.array(value, np.float32))


# -- layers ----------------------------------------------------------------------------------------------------


@register
class Pooling(Layer):
    """Maximum, mean or random choice of windows (pooling_layer.cpp, pooling_layer.cu).

    out = ceil((in + 2 pad - kernel) / stride) + 1, floor with round_mode FLOOR (forks: ceil_mode false); with any
    padding a last window that would start behind the bottom is dropped. `global_pooling` takes the whole bottom.

    MAX         maximum of the window inside the bottom; a second top holds its place h * W + w. The gradient goes to
                the first maximum, row by row. Without any value: -FLT_MAX.
    AVE         sum inside the bottom / size of the window inside the padded bottom.
    STOCHASTIC  TRAIN: the first value, row by row, at which the running sum reaches u * sum, u uniform in (0, 1];
                TEST: sum(x^2) / sum(x), 0 unless sum(x) > 0. (Caffe has it on the GPU only.)
    """

    TYPE = "Pooling"
    FROM_ONNX = True
    V1 = ("POOLING",)
    V0 = ("pool",)
    PARAM = "pooling_param"
    FORK_FIELDS = ("pooling_param.ceil_mode",)
    TOPS = (1, 2)

    LEAST_SUM: float | None = None
    """What stochastic pooling adds to the sum that it divides by; None: it gives 0 where the sum is not positive."""

    window: Window

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.method = self.p.DESCRIPTOR.enum_types_by_name["PoolMethod"].values_by_number[self.p.pool].name
        what = f"{self.method} pooling has one top, got {self.tops}"
        self.check(self.tops == 1 or self.method == "MAX", what, field="top[1]", remedy="only MAX has a mask")
        what = f"the bottom has shape {bottoms[0]}; pooling takes four axes"
        self.check(len(bottoms[0]) == 4, what, field="bottom", remedy="reshape it to (N, C, H, W)")
        self.everywhere = bool(self.p.global_pooling)
        self.window = self.read_window(bottoms[0])

    def read_window(self, bottom: Shape) -> Window:
        """The window from the parameters (PoolingLayer::LayerSetUp)."""
        self._check_stated()
        kernel = (bottom[2], bottom[3]) if self.everywhere else self._pair("kernel_size", "kernel")
        stride, pad = self._pair("stride", "stride"), self._pair("pad", "pad")
        for name, pair in ("kernel_size", kernel), ("stride", stride):
            what = f"{name} {pair[0]} x {pair[1]} must be positive"
            self.check(min(pair) > 0, what, field=f"pooling_param.{name}", remedy="make both sizes > 0")
        if self.everywhere:
            what = f"global_pooling takes pad 0 and stride 1, got pad {pad} and stride {stride}"
            field, plain = "pooling_param.global_pooling", pad == (0, 0) and stride == (1, 1)
            self.check(plain, what, field=field, remedy="remove pad and stride, or state a kernel size instead")
        self._check_pad(kernel, pad)
        return Window(kernel, stride, pad, self._ceil())

    def _ceil(self) -> bool:
        """Whether sizes are rounded up; `round_mode`, which BVLC Caffe has, counts before the forks' `ceil_mode`."""
        if self.has("round_mode"):
            return bool(self.p.round_mode == self.p.CEIL)
        return bool(self.p.ceil_mode)

    def _check_stated(self) -> None:
        """Each size is given in one way (PoolingLayer::LayerSetUp)."""
        has = {name: self.has(name) for name in ("kernel_size", "kernel_h", "kernel_w")}
        if self.everywhere:
            what = "global_pooling takes no kernel size"
            self.check(not any(has.values()), what, field="pooling_param.kernel_size", remedy="remove it")
        else:
            what = "the kernel is given by kernel_size, or by both kernel_h and kernel_w"
            one_way = has["kernel_size"] != (has["kernel_h"] and has["kernel_w"])
            field = "pooling_param.kernel_h" if has["kernel_h"] else "pooling_param.kernel_w"
            self.check(one_way, what, field=field, remedy="state kernel_size alone, or global_pooling: true")
        for stem in ("pad", "stride"):
            high, wide = self.has(f"{stem}_h"), self.has(f"{stem}_w")
            one_way = high == wide and not (high and self.has(stem))
            what = f"{stem} is given by {stem}, or by both {stem}_h and {stem}_w"
            field = f"pooling_param.{stem}_h" if high else f"pooling_param.{stem}_w"
            self.check(one_way, what, field=field, remedy=f"state {stem} alone")

    def _pair(self, name: str, stem: str) -> Pair:
        """(h, w) of a size; either kernel_size or kernel_h and kernel_w."""
        if self.has(name) or not self.has(f"{stem}_h"):
            return (getattr(self.p, name),) * 2
        return getattr(self.p, f"{stem}_h"), getattr(self.p, f"{stem}_w")

    def _check_pad(self, kernel: Pair, pad: Pair) -> None:
        if any(pad):
            what = "stochastic pooling takes no padding"
            self.check(self.method != "STOCHASTIC", what, field="pooling_param.pad", remedy="remove pad")
            what = f"pad {pad[0]} x {pad[1]} is not below kernel {kernel[0]} x {kernel[1]}"
            below = pad[0] < kernel[0] and pad[1] < kernel[1]
            self.check(below, what, field="pooling_param.pad", remedy="pad less, or use a larger kernel")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        size = bottoms[0][2:]
        return [(*bottoms[0][:2], *self.at(size).output(size))] * self.tops

    def at(self, size: Sequence[int]) -> Window:
        """The window for a bottom of that height and width."""
        return Window((size[0], size[1]), (1, 1), (0, 0)) if self.everywhere else self.window

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        window = self.at(x.shape[2:]) if self.everywhere else self.window
        if self.tops == 2:
            return list(max_pool_with_mask(x, window))
        if self.method == "MAX":
            return [self.maximum(x, window)]
        if self.method == "AVE":
            return [x.mean((2, 3), keepdim=True) if self.everywhere else ave_pool(x, window)]
        if self.phase == "TRAIN":
            return [stochastic_train(x, window, self.context.state.get("draws", {}).get(self.name))]
        return [stochastic_test(x, window, self.LEAST_SUM)]

    def maximum(self, x: Tensor, window: Window) -> Tensor:
        return max_pool(x, window)

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        size = self.bottom_shapes[0][2:]
        if self.tops != 1 or self.method not in ("MAX", "AVE") or any(self.at(size).empty(size)):
            return super().to_python(w, bottoms)
        x, window = bottoms[0], self.window
        if self.everywhere:
            return f"{x}.{'amax' if self.method == 'MAX' else 'mean'}((2, 3), keepdim=True)"
        function = {"MAX": "max_pool2d", "AVE": "avg_pool2d"}[self.method]
        named = {"padding": size_text(window.pad) if any(window.pad) else None, "ceil_mode": str(window.ceil)}
        called = f"F.{function}" if window.narrow else w.part(f"wide_{function}")
        return call(called, x, size_text(window.kernel), size_text(window.stride), **named)

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        size = self.bottom_shapes[0][2:]
        window = self.at(size)
        if self.everywhere and self.tops == 1 and self.method in ("MAX", "AVE"):
            g.op("GlobalMaxPool" if self.method == "MAX" else "GlobalAveragePool", bottoms, tops)
        elif self.tops == 2:
            self._write_mask(g, bottoms[0], size, tops)
        elif self.method == "MAX":
            write_max_pool(g, bottoms[0], size, window, tops)
        elif self.method == "AVE":
            write_ave_pool(g, bottoms[0], size, window, tops)
        else:
            self._write_stochastic(g, bottoms[0], size, tops)

    def _write_mask(self, g: OnnxWriter, bottom: str, size: Sequence[int], tops: list[str]) -> None:
        """ONNX's indices count through the whole tensor, Caffe's through one channel."""
        window = self.at(size)
        maxima, places = g.op("MaxPool", [bottom], 2, **_attributes(window, size))
        place = g.op("Mod", [places, g.constant(np.array(size[0] * size[1], np.int64))])
        if any(window.empty(size)):
            _write_empty(g, maxima, size, window, -FLT_MAX, tops[:1])
            _write_empty(g, g.op("Cast", place, to=FLOAT)[0], size, window, -1, tops[1:])
        else:
            g.op("Identity", [maxima], tops[:1])
            g.op("Cast", place, tops[1:], to=FLOAT)

    def _write_stochastic(self, g: OnnxWriter, bottom: str, size: Sequence[int], tops: list[str]) -> None:
        """sum(x^2) / sum(x); means over the kernel's size stand for the sums."""
        if self.phase == "TRAIN":
            raise ConversionError(
                "stochastic pooling draws at random in phase TRAIN",
                where=self.where(),
                remedy="convert the net of phase TEST",
            )
        window = self.at(size)
        squares = write_kernel_mean(g, g.op("Mul", [bottom, bottom])[0], size, window)
        total = write_kernel_mean(g, bottom, size, window)
        if self.LEAST_SUM is not None:
            kernel = _scalar(g, window.kernel[0] * window.kernel[1])
            whole = g.op("Add", [*g.op("Mul", [*total, kernel]), _scalar(g, self.LEAST_SUM)])
            g.op("Div", [*g.op("Mul", [*squares, kernel]), *whole], tops)
            return
        zero = _scalar(g, 0)
        positive = g.op("Greater", [*total, zero])
        divisor = g.op("Where", [*positive, *total, _scalar(g, 1)])
        g.op("Where", [*positive, *g.op("Div", [*squares, *divisor]), zero], tops)


@register
class Pooling2013(Pooling):
    """Pooling of 3213bd87e (pooling_layer.cpp, pooling_layer.cu): square windows, and `pad` has no effect.

    out = ceil((in - kernel) / stride) + 1; no window is dropped, so with stride > kernel the last may be empty.

    MAX         the gradient goes, whole, to everything in the window that equals its maximum, or what an in-place
                layer behind leaves in the maximum's place.
    AVE         divisor: the window's size inside the bottom.
    STOCHASTIC  TEST: sum(x^2) / (FLT_MIN + sum(x)).
    """

    PROFILES = ("dec2013",)
    TOPS = (1, 1)
    LEAST_SUM = FLT_MIN

    def read_window(self, bottom: Shape) -> Window:
        self.left: list[Tensor] | None = None
        check_fields(self, {"pool", "pad", "kernel_size", "stride"})
        for name in ("kernel_size", "stride"):
            positive = getattr(self.p, name) > 0
            self.check(positive, f"{name} is 0", field=f"pooling_param.{name}", remedy="make it > 0")
        return Window((self.p.kernel_size,) * 2, (self.p.stride,) * 2, (0, 0))

    def maximum(self, x: Tensor, window: Window) -> Tensor:
        self.left = [] if x.requires_grad else None
        if self.left is None:
            return max_pool(x, window)
        return _tied_function().apply(x, window, self.left)  # type: ignore[no-any-return]

    def overwritten(self, top: Tensor) -> None:
        """A layer behind has changed the top in place."""
        if self.left is not None:
            self.left[:] = [top.detach()]
