"""Reshape, Transpose, Concat, Slice and whatever else moves values without changing them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from converters.importing.arithmetic import repeated
from converters.importing.builder import Builder, Value
from converters.importing.folding import TYPES, axes_of, flattened, parts_of, reshaped, slices, squeezed, unsqueezed
from converters.importing.padding import crop, cut, every, padded
from converters.importing.program import Array, Op, Shape
from converters.importing.translation import refuse_unless, rule

MOST_RUNS = 256
"""Parts that a blob may be taken apart into."""


@rule("Identity", "Dropout")
def same(b: Builder, op: Op) -> list[Value]:
    """Nothing: dropout does not act when a net is used."""
    training = b.optional(op, 2, "training_mode")
    trains = training is not None and bool(training.reshape(-1)[0])
    refuse_unless(not trains, op, "it is in training mode", "export the model for inference")
    refuse_unless(not any(op.outputs[1:]), op, "its mask is used", "export the model for inference")
    return [b.raw(op, 0)]


@rule("Cast")
def cast(b: Builder, op: Op) -> list[Value]:
    """Floats stay as they are; whole numbers may then only choose rows of a table."""
    kind = TYPES.get(op.get("to"))
    refuse_unless(kind in (np.float32, np.int64, np.int32), op, f"to type {op.get('to')}", "keep to float32")
    x = b.raw(op, 0)
    if kind is np.float32:
        refuse_unless(not x.cut, op, "fractions are dropped before it", "no layer does that: keep to float32")
        return [replace(x, integer=False)]
    x = x if x.integer else replace(b.blob(op, x), cut=True)
    return [replace(x, integer=True)]


# -- shapes ------------------------------------------------------------------------------------------------


def reshape(b: Builder, op: Op, x: Value, shape: Shape, suffix: str = "") -> Value:
    """The same values in another shape; Flatten where it is that."""
    if x.shape == shape:
        return x
    before = b.retract(x, "Reshape", "Flatten")
    name = ""
    if before is not None:
        x, name, suffix = before.bottoms[0], before.param.name, ""
        if x.shape == shape:
            return x
    if len(shape) == 2 and len(x.shape) > 2 and shape[0] == x.shape[0]:
        return b.one(op, "Flatten", [x], suffix=suffix, name=name)
    first = next(
        (i for i, (a, z) in enumerate(zip(x.shape, shape, strict=False)) if a != z), min(len(shape), len(x.shape))
    )
    dims = [0] * first + list(shape[first:])
    return b.one(op, "Reshape", [x], suffix=suffix, name=name, shape={"dim": dims})


def _checked(op: Op, function: Callable[..., Shape], *args: Any) -> Shape:
    """A shape rule whose complaint becomes a refusal."""
    try:
        return tuple(function(*args))
    except (ValueError, TypeError) as error:
        raise op.refuse(str(error), "check the model with onnx.checker") from error


@rule("Reshape")
def reshape_(b: Builder, op: Op) -> list[Value]:
    """To a constant shape."""
    x = b.read(op, 0)
    dims = op.get("shape") if op.version < 5 else [int(n) for n in b.constant(op, 1, "shape").reshape(-1)]
    return [reshape(b, op, x, _checked(op, reshaped, x.shape, dims, bool(op.get("allowzero", 0))))]


@rule("Flatten")
def flatten(b: Builder, op: Op) -> list[Value]:
    """To two axes."""
    x = b.read(op, 0)
    return [reshape(b, op, x, flattened(x.shape, op.get("axis", 1)))]


@rule("Squeeze", "Unsqueeze")
def squeeze(b: Builder, op: Op) -> list[Value]:
    """Without axes of size 1, or with more of them."""
    x, function = b.read(op, 0), squeezed if op.kind == "Squeeze" else unsqueezed
    axes = axes_of(op, [None, b.optional(op, 1, "axes")])
    return [reshape(b, op, x, _checked(op, function, x.shape, axes))]


@rule("Transpose")
def transpose(b: Builder, op: Op) -> list[Value]:
    """Other order of axes; where only axes of size 1 move it is a Reshape."""
    x = b.read(op, 0)
    rank = len(x.shape)
    order = [int(axis) for axis in op.get("perm", range(rank - 1, -1, -1))]
    refuse_unless(sorted(order) == list(range(rank)), op, f"perm {order} of {rank} axes", "check the model")
    return [permute(b, op, x, order)]


def permute(b: Builder, op: Op, x: Value, order: Sequence[int], suffix: str = "") -> Value:
    """Axis i of the result is axis order[i]: Permute, which forks for detection have."""
    shape = tuple(x.shape[axis] for axis in order)
    moving = [axis for axis in order if x.shape[axis] != 1]
    if moving == sorted(moving):
        return reshape(b, op, x, shape, suffix)
    b.notes.append(f'"{b.base_name(op)}": Permute is a layer of the ssd fork, BVLC Caffe does not have it')
    return b.one(op, "Permute", [x], suffix=suffix, order=list(order))


@rule("DepthToSpace", "SpaceToDepth")
def blocks(b: Builder, op: Op) -> list[Value]:
    """Channels to blocks of places or back: Reshape, Permute, Reshape."""
    x, size = b.read(op, 0), int(op.get("blocksize", 0))
    refuse_unless(len(x.shape) == 4 and size > 0, op, f"blocksize {size}, shape {list(x.shape)}", "check the model")
    n, c, h, w = x.shape
    if op.kind == "SpaceToDepth":
        refuse_unless(h % size == 0 and w % size == 0, op, f"{h} x {w} in blocks of {size}", "check the model")
        inner, order = (n, c, h // size, size, w // size, size), (0, 3, 5, 1, 2, 4)
        shape = (n, c * size * size, h // size, w // size)
    else:
        refuse_unless(c % size**2 == 0, op, f"{c} channels in blocks of {size}", "check the model")
        columns_first = op.get("mode", "DCR") == "CRD"
        depth = c // size**2
        inner = (n, depth, size, size, h, w) if columns_first else (n, size, size, depth, h, w)
        order = (0, 1, 4, 2, 5, 3) if columns_first else (0, 3, 4, 1, 5, 2)
        shape = (n, depth, h * size, w * size)
    return [reshape(b, op, permute(b, op, reshape(b, op, x, inner, "blocks"), order, "order"), shape)]


# -- parts -------------------------------------------------------------------------------------------------


def _axis(op: Op, axis: int, rank: int) -> int:
    refuse_unless(-rank <= axis < rank, op, f"axis {axis} of {rank}", "check the model with onnx.checker")
    return axis % rank


@rule("Concat")
def concat(b: Builder, op: Op) -> list[Value]:
    """Blobs one after another."""
    values = [b.blob(op, b.raw(op, index)) for index in range(len(op.inputs))]
    values = [value for value in values if prod(value.shape)] or values[:1]
    axis = _axis(op, int(op.get("axis", 1)), len(values[0].shape))
    return [values[0] if len(values) == 1 else b.one(op, "Concat", values, axis=axis if axis != 1 else None)]


@rule("Split")
def split(b: Builder, op: Op) -> list[Value]:
    """Parts of an axis."""
    x = b.read(op, 0)
    axis = _axis(op, int(op.get("axis", 0)), len(x.shape))
    sizes = _checked(op, lambda: tuple(parts_of(op, x.shape[axis], b.optional(op, 1, "split"))))
    refuse_unless(min(sizes) > 0, op, f"a part of size 0 among {list(sizes)}", "leave it out")
    return cut(b, op, x, axis, sizes)


@rule("Slice")
def slice_(b: Builder, op: Op) -> list[Value]:
    """Runs of places; each second, third... place of the axes behind the channels."""
    x = b.read(op, 0)
    given = [None, *(b.optional(op, index, "range") for index in range(1, 5))]
    try:
        cuts = slices(op, given, x.shape)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise op.refuse(str(error), "check the model with onnx.checker") from error
    steps = [1] * len(x.shape)
    for axis, part in cuts.items():
        places = range(part.start, part.stop, part.step)
        refuse_unless(len(places) > 0, op, f"nothing is left of axis {axis}", "check the model")
        if part.step < 0 or (part.step > 1 and axis < 2):
            x = take(b, op, x, np.array(places), axis)
            continue
        x = crop(b, op, x, axis, places[0], places[-1] + 1)
        steps[axis] = part.step if len(places) > 1 else 1
    return [every(b, op, x, steps[2:])]


def take(b: Builder, op: Op, x: Value, places: Array, axis: int) -> Value:
    """Constant places of an axis, in that order: parts of the blob one after another."""
    axis = _axis(op, int(axis), len(x.shape))
    size, flat = x.shape[axis], [int(place) for place in places.reshape(-1)]
    inside = all(-size <= place < size for place in flat) and len(flat) > 0
    refuse_unless(inside, op, f"places {flat[:8]} of an axis of {size}", "check the model with onnx.checker")
    runs = _runs([place % size for place in flat])
    refuse_unless(len(runs) <= MOST_RUNS, op, f"{len(runs)} separate places of an axis", "reorder the weights instead")
    parts = [crop(b, op, x, axis, start, stop) for start, stop in runs]
    made = parts[0] if len(parts) == 1 else b.one(op, "Concat", parts, axis=axis if axis != 1 else None)
    return reshape(b, op, made, (*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Places as ranges of neighbours."""
    breaks = [i for i, (a, z) in enumerate(pairwise(places), 1) if z != a + 1]
    return [(places[i], places[k - 1] + 1) for i, k in pairwise([0, *breaks, len(places)])]


# -- more of the same --------------------------------------------------------------------------------------


@rule("Expand", "Tile")
def expand(b: Builder, op: Op) -> list[Value]:
    """Repeated along axes."""
    x = b.read(op, 0)
    numbers = [int(n) for n in b.constant(op, 1, "shape").reshape(-1)]
    refuse_unless(min(numbers, default=1) > 0, op, f"sizes {numbers}", "check the model with onnx.checker")
    if op.kind == "Expand":
        return [repeated(b, op, x, _checked(op, np.broadcast_shapes, x.shape, tuple(numbers)))]
    refuse_unless(len(numbers) == len(x.shape), op, f"repeats {numbers} of {len(x.shape)} axes", "check the model")
    for axis, times in enumerate(numbers):
        if times != 1:
            x = b.one(op, "Tile", [x], axis=axis if axis != 1 else None, tiles=times)
    return [x]


@rule("Pad")
def pad(b: Builder, op: Op) -> list[Value]:
    """Zeros around a blob, left to the next layer where that has pads of its own; below 0 it cuts off."""
    x, mode = b.raw(op, 0), op.get("mode", "constant") or "constant"
    refuse_unless(mode == "constant", op, f'mode "{mode}"', "pad with zeros")
    sides, value = _sides(b, op, len(x.shape)), _value(b, op)
    refuse_unless(value == 0 or not any(map(any, sides)), op, f"padding with {value:g}", "pad with zeros")
    if x.array is not None or x.integer or any(min(pair) < 0 for pair in sides):
        x = b.blob(op, x)
    for axis, (before, after) in enumerate(sides):
        fits = -min(before, 0) - min(after, 0) < x.shape[axis]
        refuse_unless(fits, op, f"pads {before}, {after} of an axis of {x.shape[axis]}", "check the model")
        x = crop(b, op, x, axis, -min(before, 0), x.shape[axis] + min(after, 0)) if min(before, after) < 0 else x
    return [padded(x, [(max(before, 0), max(after, 0)) for before, after in sides])]


def _sides(b: Builder, op: Op, rank: int) -> list[tuple[int, int]]:
    """(before, after) for every axis."""
    given = (
        b.constant(op, 1, "pads").reshape(-1).tolist() if op.version >= 11 else op.get("pads", op.get("paddings", []))
    )
    numbers, axes = [int(n) for n in given], list(range(rank))
    if op.has(3):
        axes = [_axis(op, int(axis), rank) for axis in b.constant(op, 3, "axes").reshape(-1)]
    right = len(numbers) == 2 * len(axes) and all(abs(n) < 2**31 for n in numbers)
    refuse_unless(right, op, f"pads {numbers[:16]} for {len(axes)} axes", "check the model with onnx.checker")
    sides = [(0, 0)] * rank
    for position, axis in enumerate(axes):
        sides[axis] = (numbers[position], numbers[len(axes) + position])
    return sides


def _value(b: Builder, op: Op) -> float:
    if op.version < 11:
        return float(op.get("value", 0.0))
    given = b.optional(op, 2, "constant_value")
    return 0.0 if given is None or not given.size else float(given.reshape(-1)[0])
