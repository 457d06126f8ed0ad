"""Zeros around a blob and parts of a blob, exactly, with layers that every Caffe has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from converters.importing.builder import Builder, Value
from converters.importing.program import Op

Sides = tuple[int, int]


def put_pads(b: Builder, op: Op, value: Value) -> Value:
    """The value with its zeros: a Convolution whose kernel is 1 x 1 and passes each channel on.

    Raises:
        ConversionError: zeros along the first axis, or no axis behind the channels.
    """
    rank = len(value.shape)
    if rank < 3 or any(value.pads[0]):
        raise op.refuse(f"zeros around {rank} axes", "pad axes behind the first of (N, C, sizes...) only")
    weight = _passing(value)
    pads = [max(sides) for sides in value.pads[2:]]
    group = value.sizes[1] if not any(value.pads[1]) else None
    spatial = {"pad": pads if len(set(pads)) > 1 else pads[:1]} if any(pads) else {}
    made = b.one(
        op, "Convolution", [replace(value, pads=(), shape=value.sizes)], [weight], "pad",
        num_output=weight.shape[0], kernel_size=[1], bias_term=False, group=group if group != 1 else None, **spatial,
    )  # fmt: skip
    for axis, (most, (before, _)) in enumerate(zip(pads, value.pads[2:], strict=True), 2):
        made = crop(b, op, made, axis, most - before, most - before + value.shape[axis])
    return replace(made, positive=value.positive)


def _passing(value: Value) -> np.ndarray:
    """Weights of a kernel of size 1 that leave every channel as it is."""
    before = value.pads[1][0]
    ones = (1,) * (len(value.shape) - 2)
    if not any(value.pads[1]):
        return np.ones((value.shape[1], 1, *ones), np.float32)
    return np.eye(value.shape[1], value.sizes[1], -before, dtype=np.float32).reshape(
        value.shape[1], value.sizes[1], *ones
    )


def crop(b: Builder, op: Op, value: Value, axis: int, start: int, stop: int) -> Value:
    """Places start..stop of an axis: a Slice whose other tops are not used."""
    points = [point for point in (start, stop) if 0 < point < value.shape[axis]]
    if not points:
        return value
    tops = b.layer(op, "Slice", [value], suffix="crop", tops=len(points) + 1, axis=axis, slice_point=points)
    return tops[1 if start else 0]


def cut(b: Builder, op: Op, value: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
    """An axis cut into parts of these sizes."""
    if len(sizes) == 1:
        return [value]
    points = np.cumsum(sizes)[:-1].tolist() if len(set(sizes)) > 1 else None
    return b.layer(op, "Slice", [value], tops=len(sizes), axis=axis, slice_point=points)


def every(b: Builder, op: Op, value: Value, steps: Sequence[int]) -> Value:
    """Each steps[i]-th place of spatial axis i, from the first on: a Convolution of kernel 1 with that stride."""
    if all(step == 1 for step in steps):
        return value
    channels = value.shape[1]
    weight = np.ones((channels, 1, *[1] * len(steps)), np.float32)
    made = b.one(
        op, "Convolution", [value], [weight], "every", num_output=channels, kernel_size=[1], bias_term=False,
        stride=list(steps) if len(set(steps)) > 1 else list(steps[:1]), group=channels if channels != 1 else None,
    )  # fmt: skip
    return replace(made, positive=value.positive)


def padded(value: Value, sides: Sequence[Sides]) -> Value:
    """The value with more zeros around it, still to be put there."""
    had = value.pads or ((0, 0),) * len(value.shape)
    pads = tuple((a + before, z + after) for (a, z), (before, after) in zip(had, sides, strict=True))
    shape = tuple(size + sum(new) for size, new in zip(value.shape, sides, strict=True))
    return replace(value, shape=shape, pads=pads if any(map(any, pads)) else ())
