"""Conv and ConvTranspose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from converters.importing.builder import Builder, Value
from converters.importing.geometry import Windows, read_windows, stated
from converters.importing.padding import Sides, crop, padded, put_pads
from converters.importing.program import Array, Op
from converters.importing.translation import refuse_unless, rule


@rule("Conv")
def conv(b: Builder, op: Op) -> list[Value]:
    """Convolution. Unequal pads become taps of 0 in the kernel, or zeros that another layer puts around the bottom."""
    x, weight, bias, group = _operands(b, op, 0)
    windows = read_windows(op, x.sizes[2:], weight.shape[2:])
    if x.pads:
        windows = windows.wider(x.pads[2:])
        x = replace(x, pads=(), shape=x.sizes)
    weight, windows, pad, outside = _symmetric(weight, windows)
    if any(map(any, outside)):
        x = put_pads(b, op, padded(x, ((0, 0), (0, 0), *outside)))
    if weight.shape[2:] != b.weights(op, 1, "weight").shape[2:]:
        b.notes.append(f'"{b.base_name(op)}": unequal pads became zeros in a kernel of {list(weight.shape[2:])}')
    return [b.one(op, "Convolution", [x], [weight, *bias], **_fields(weight.shape[0], windows, pad, group, bool(bias)))]


def _operands(b: Builder, op: Op, outputs_at: int) -> tuple[Value, Array, list[Array], int]:
    """Bottom, weight, bias (none or one) and group, as far as they go together."""
    x, weight, group = b.raw(op, 0), b.weights(op, 1, "weight"), int(op.get("group", 1))
    if x.array is not None or x.integer or (x.pads and any(map(any, x.pads[:2]))):
        x = b.blob(op, x)
    rank = len(x.shape)
    fits = rank >= 3 and weight.ndim == rank and group > 0 and (outputs_at == 0 or weight.shape[0] == x.shape[1])
    refuse_unless(fits, op, f"a weight of {list(weight.shape)}, group {group}, for {list(x.shape)}", "check the model")
    outputs = weight.shape[0] if outputs_at == 0 else weight.shape[1] * group
    bias = b.weights(op, 2, "bias") if op.has(2) else None
    fits = bias is None or bias.shape == (outputs,)
    refuse_unless(fits, op, f"a bias of {list(bias.shape) if bias is not None else []}", "check the model")
    return x, weight, [] if bias is None else [bias], group


def _fields(outputs: int, windows: Windows, pad: Sequence[int], group: int, bias: bool) -> dict[str, Any]:
    """convolution_param."""
    return {
        "num_output": outputs,
        "bias_term": None if bias else False,
        **stated("pad", pad, 0),
        **stated("kernel_size", windows.kernel),
        "group": group if group != 1 else None,
        **stated("stride", windows.stride, 1),
        **stated("dilation", windows.dilation, 1),
    }


def _symmetric(weight: Array, windows: Windows) -> tuple[Array, Windows, list[int], list[Sides]]:
    """Weight, geometry, Caffe's pad and the zeros that are to be put around the bottom before."""
    taps: list[Sides] = []
    pads: list[int] = []
    outside: list[Sides] = []
    for axis, (before, after) in enumerate(windows.pads):
        step = windows.dilation[axis]
        plain = [before] * len(windows.pads)
        if windows.caffe(plain).down(windows.sizes)[axis] == windows.outputs[axis]:
            taps, pads, outside = [*taps, (0, 0)], [*pads, before], [*outside, (0, 0)]
        elif (after - before) % step == 0:
            more = (after - before) // step
            taps, pads = [*taps, (max(more, 0), max(-more, 0))], [*pads, max(before, after)]
            outside = [*outside, (0, 0)]
        else:
            least = min(before, after)
            taps, pads = [*taps, (0, 0)], [*pads, least]
            outside = [*outside, (before - least, after - least)]
    if any(map(any, taps)):
        weight = np.pad(weight, [(0, 0), (0, 0), *taps])
    sizes = tuple(size + sum(sides) for size, sides in zip(windows.sizes, outside, strict=True))
    made = replace(windows, kernel=weight.shape[2:], sizes=sizes)
    return weight, made, pads, outside


@rule("ConvTranspose")
def conv_transpose(b: Builder, op: Op) -> list[Value]:
    """Deconvolution. What ONNX leaves out on one side only is cut off afterwards, or kept by taps of 0."""
    x, weight, bias, group = _operands(b, op, 1)
    x = b.blob(op, x)
    plain = replace(op, attributes={key: value for key, value in op.attributes.items() if key not in _AFTER})
    windows = read_windows(plain, (MANY,) * (weight.ndim - 2), weight.shape[2:])
    windows = replace(windows, sizes=x.shape[2:])
    sides, taps = [], []
    for axis, (before, after) in enumerate(_left_out(op, windows)):
        more = -(min(after, 0) // windows.dilation[axis])
        taps.append((0, more))
        sides.append((before, after + more * windows.dilation[axis]))
    if any(map(any, taps)):
        weight = np.pad(weight, [(0, 0), (0, 0), *taps])
    windows = replace(windows, kernel=weight.shape[2:])
    pad = [min(pair) for pair in sides]
    fields = _fields(weight.shape[1] * group, windows, pad, group, bool(bias))
    made = b.one(op, "Deconvolution", [x], [weight, *bias], **fields)
    for axis, ((before, after), own) in enumerate(zip(sides, pad, strict=True), 2):
        made = crop(b, op, made, axis, before - own, made.shape[axis] - (after - own))
    return [made]


MANY = 1 << 30
"""A size into which every kernel fits."""
_AFTER = ("auto_pad", "output_padding", "output_shape", "pads")


def _left_out(op: Op, windows: Windows) -> list[Sides]:
    """How much of the full result is left out before and after; below 0 where zeros are to be added."""
    rank = len(windows.sizes)
    extra = [int(n) for n in op.get("output_padding", [0] * rank)]
    pads = [int(n) for n in op.get("pads", [0] * 2 * rank)]
    auto = op.get("auto_pad", "NOTSET") or "NOTSET"
    right = len(extra) == rank and len(pads) == 2 * rank and min([*extra, *pads]) >= 0
    refuse_unless(right, op, f"pads {pads}, output_padding {extra}", "check the model with onnx.checker")
    full = windows.caffe([0] * rank).up(windows.sizes)
    wanted = [int(n) for n in op.get("output_shape", [])][-rank:]
    if not wanted and auto in ("NOTSET", "VALID"):
        return [(pads[i], pads[rank + i] - extra[i]) for i in range(rank)]
    wanted = wanted or [size * step for size, step in zip(windows.sizes, windows.stride, strict=True)]
    sides = []
    for size, want, more in zip(full, wanted, extra, strict=True):
        total = max(size + more - want, 0)
        small = total // 2
        first = small if auto == "SAME_UPPER" else total - small
        sides.append((first, size - want - first))
    refuse_unless(min(prod(wanted), 1) > 0, op, f"output_shape {wanted}", "check the model with onnx.checker")
    return sides
