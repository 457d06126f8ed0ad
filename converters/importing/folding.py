"""Operators whose inputs are all known, computed at once with numpy: shapes of shapes, and weights made of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto

from converters.importing.program import Array, Op

GROWTH = 1 << 26
"""Values that all results together may have beyond those of their inputs: a file cannot ask for more than it holds."""

TYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float32,
    TensorProto.BFLOAT16: np.float32,
    TensorProto.DOUBLE: np.float32,
    TensorProto.INT64: np.int64,
    TensorProto.INT32: np.int32,
    TensorProto.UINT8: np.uint8,
    TensorProto.INT8: np.int8,
    TensorProto.BOOL: np.bool_,
}
"""Type in ONNX -> numpy's; all floating-point numbers are float32 here."""

Fold = Callable[["Folder", Op, list[Array]], Array | list[Array]]


class Folder:
    """Computes constants.

    Args:
        left: values that results may still have beyond their inputs.
    """

    def __init__(self, left: int = GROWTH) -> None:
        self._left = left

    def fold(self, op: Op, inputs: Sequence[Array | None]) -> list[Array] | None:
        """The outputs; None when there is no way to compute them here.

        Raises:
            ConversionError: the operator breaks its own rules, or the result is far larger than the file.
        """
        if op.kind not in _FOLDS:
            return None
        given: Any = list(inputs)
        try:
            with np.errstate(all="ignore"):
                made = _FOLDS[op.kind](self, op, given)
        except (ValueError, IndexError, TypeError, KeyError, ArithmeticError, np.exceptions.AxisError) as error:
            what = f"its constants cannot be computed ({error})"
            raise op.refuse(what, "check the model with onnx.checker") from error
        return made if isinstance(made, list) else [made]

    def allow(self, op: Op, size: int, inputs: int = 0) -> None:
        """Refuse a result of `size` values that is far larger than the inputs."""
        if size > inputs:
            self._left -= size
        if self._left < 0:
            raise op.refuse(f"a constant of {size} values", "the file claims more than it holds: fetch it again")

    def broadcast(self, op: Op, inputs: Sequence[Array]) -> None:
        """See to it that the inputs go together, and how large the result is."""
        shape = np.broadcast_shapes(*(each.shape for each in inputs))
        self.allow(op, prod(shape), max(each.size for each in inputs))


def _elementwise(function: Callable[..., Any]) -> Fold:
    def fold(folder: Folder, op: Op, inputs: list[Array]) -> Array:
        folder.broadcast(op, inputs)
        made = np.asarray(function(*inputs))
        return made.astype(inputs[0].dtype) if made.dtype != np.bool_ else made

    return fold


def _compare(function: Callable[..., Any]) -> Fold:
    def fold(folder: Folder, op: Op, inputs: list[Array]) -> Array:
        folder.broadcast(op, inputs)
        return np.asarray(function(*inputs))

    return fold


def _divide(a: Array, b: Array) -> Array:
    """Division that drops the fraction of whole numbers as C does."""
    if np.asarray(a).dtype.kind not in "iu":
        return np.asarray(a / b)
    if not np.all(b):
        raise ZeroDivisionError("division by 0")
    return np.asarray(np.trunc(a / b)) if np.abs(a).max(initial=0) < 2**52 else np.asarray(a // b)


def _reduction(function: Callable[..., Any]) -> Fold:
    def fold(_folder: Folder, op: Op, inputs: list[Array]) -> Array:
        axes = inputs[1].tolist() if op.has(1) else op.get("axes")
        if not axes and op.get("noop_with_empty_axes", 0):
            return inputs[0]
        made = function(inputs[0], axis=tuple(axes) if axes else None, keepdims=bool(op.get("keepdims", 1)))
        return np.asarray(made).astype(inputs[0].dtype)

    return fold


def axes_of(op: Op, inputs: Sequence[Array | None]) -> list[int] | None:
    """The axes that an attribute (older) or input 1 (newer) names; None when there are none."""
    if len(inputs) > 1 and inputs[1] is not None:
        return [int(axis) for axis in inputs[1].reshape(-1)]
    stated: list[int] | None = op.get("axes")
    return stated


def squeezed(shape: Sequence[int], axes: Sequence[int] | None) -> tuple[int, ...]:
    """A shape without axes of size 1: those named, or all.

    Raises:
        ValueError: one that is named has another size.
    """
    rank = len(shape)
    gone = {axis % rank for axis in axes} if axes is not None else {i for i, size in enumerate(shape) if size == 1}
    if any(shape[axis] != 1 for axis in gone) or any(not -rank <= axis < rank for axis in axes or ()):
        raise ValueError(f"axes {list(axes or ())} of the shape {tuple(shape)}")
    return tuple(size for axis, size in enumerate(shape) if axis not in gone)


def unsqueezed(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """A shape with axes of size 1 put in.

    Raises:
        ValueError: an axis is out of range, or named twice.
    """
    rank = len(shape) + len(axes)
    places = {axis % rank for axis in axes if -rank <= axis < rank}
    if len(places) != len(axes):
        raise ValueError(f"axes {list(axes)} for the shape {tuple(shape)}")
    sizes = iter(shape)
    return tuple(1 if axis in places else next(sizes) for axis in range(rank))


def reshaped(shape: Sequence[int], dims: Sequence[int], allowzero: bool = False) -> tuple[int, ...]:
    """The shape that Reshape makes: 0 copies, one -1 takes what remains.

    Raises:
        ValueError: the sizes do not go together.
    """
    made = [shape[i] if dim == 0 and not allowzero and i < len(shape) else dim for i, dim in enumerate(dims)]
    if made.count(-1) > 1 or min(made, default=0) < -1 or len(made) > 32:
        raise ValueError(f"the shape {list(dims)}")
    if -1 in made:
        known = -prod(made)
        if known == 0 or prod(shape) % known:
            raise ValueError(f"the shape {tuple(shape)} as {list(dims)}")
        made[made.index(-1)] = prod(shape) // known
    if prod(made) != prod(shape):
        raise ValueError(f"the shape {tuple(shape)} as {list(dims)}")
    return tuple(made)


def slices(op: Op, inputs: Sequence[Array | None], shape: Sequence[int]) -> dict[int, slice]:
    """Axis -> what Slice takes of it, with starts and stops inside the axis.

    Raises:
        ValueError: numbers that do not go together.
    """
    if op.version < 10:
        starts, ends, axes, steps = op.get("starts", []), op.get("ends", []), op.get("axes"), None
    else:
        lists = [None if i >= len(inputs) or inputs[i] is None else inputs[i] for i in range(1, 5)]
        starts, ends, axes, steps = (None if each is None else [int(n) for n in each.reshape(-1)] for each in lists)
    starts, ends = starts or [], ends or []
    axes = list(range(len(starts))) if axes is None else [axis % len(shape) for axis in axes]
    steps = steps or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or len(set(axes)) < len(axes) or 0 in steps:
        raise ValueError(f"starts {starts}, ends {ends}, axes {axes}, steps {steps}")
    cuts = zip(axes, starts, ends, steps, strict=True)
    return {axis: slice(*slice(start, end, step).indices(shape[axis])) for axis, start, end, step in cuts}


def _constant(_folder: Folder, op: Op, _inputs: list[Array]) -> Array:
    for key, kind in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64)):
        if key in op.attributes:
            return np.array(op.attributes[key], kind)
    return np.array(op.attributes["value_ints"], np.int64) if "value_ints" in op.attributes else op.attributes["value"]


def _filled(folder: Folder, op: Op, inputs: list[Array]) -> Array:
    shape = _sizes(inputs[0])
    value = op.get("value", np.zeros(1, np.float32))
    folder.allow(op, prod(shape))
    return np.full(shape, value.reshape(-1)[0], value.dtype)


def _sizes(values: Array) -> tuple[int, ...]:
    shape = tuple(int(size) for size in values.reshape(-1))
    if len(shape) > 32 or any(size < 0 for size in shape):
        raise ValueError(f"the shape {list(shape)[:32]}")
    return shape


def _expand(folder: Folder, op: Op, inputs: list[Array]) -> Array:
    shape = np.broadcast_shapes(inputs[0].shape, _sizes(inputs[1]))
    folder.allow(op, prod(shape), inputs[0].size)
    return np.broadcast_to(inputs[0], shape)


def _tile(folder: Folder, op: Op, inputs: list[Array]) -> Array:
    repeats = _sizes(inputs[1])
    folder.allow(op, prod(repeats) * inputs[0].size, inputs[0].size)
    return np.tile(inputs[0], repeats)


def _range(folder: Folder, op: Op, inputs: list[Array]) -> Array:
    start, limit, delta = (each.reshape(-1)[0] for each in inputs)
    if not delta:
        raise ValueError("delta 0")
    count = max(0, int(np.ceil((float(limit) - float(start)) / float(delta))))
    folder.allow(op, count)
    return np.asarray(start + np.arange(count) * delta, inputs[0].dtype)


def _gather(folder: Folder, op: Op, inputs: list[Array]) -> Array:
    data, indices = inputs
    axis = op.get("axis", 0) % data.ndim
    folder.allow(op, data.size // max(data.shape[axis], 1) * indices.size, data.size)
    return np.asarray(np.take(data, np.where(indices < 0, indices + data.shape[axis], indices), axis))


def _concat(folder: Folder, op: Op, inputs: list[Array]) -> Array:
    folder.allow(op, sum(each.size for each in inputs))
    return np.concatenate(inputs, op.get("axis", 1))


def _slice(_folder: Folder, op: Op, inputs: list[Array]) -> Array:
    cuts: list[Any] = [slice(None)] * inputs[0].ndim
    for axis, cut in slices(op, inputs, inputs[0].shape).items():
        cuts[axis] = cut if cut.stop >= 0 else slice(cut.start, None, cut.step)  # down to and with 0
    return np.asarray(inputs[0][tuple(cuts)])


def parts_of(op: Op, size: int, sizes: Array | None) -> list[int]:
    """Sizes that Split makes of an axis.

    Raises:
        ValueError: they do not fill it.
    """
    stated = [int(n) for n in sizes.reshape(-1)] if sizes is not None else op.get("split")
    if stated is None:
        count = len(op.outputs)
        step = -(-size // count)
        stated = [min(step, size - step * i) for i in range(count)]
    if len(stated) != len(op.outputs) or min(stated) < 0 or sum(stated) != size:
        raise ValueError(f"{size} cannot be split into {stated}")
    return list(stated)


def _split(_folder: Folder, op: Op, inputs: list[Array]) -> list[Array]:
    axis = op.get("axis", 0)
    sizes = inputs[1] if len(inputs) > 1 else None
    points = np.cumsum(parts_of(op, inputs[0].shape[axis], sizes))[:-1]
    return list(np.split(inputs[0], points, axis))


def _pad(folder: Folder, op: Op, inputs: list[Array]) -> Array:
    if op.get("mode", "constant") != "constant" or op.version < 11:
        raise ValueError("padding of constants by other than constants")
    data, pads = inputs[0], _sizes(inputs[1])
    value = inputs[2].reshape(-1)[0] if len(inputs) > 2 and inputs[2] is not None else 0
    widths = list(zip(pads[: data.ndim], pads[data.ndim :], strict=True))
    folder.allow(op, prod(size + sum(width) for size, width in zip(data.shape, widths, strict=True)), data.size)
    return np.pad(data, widths, constant_values=value)


def _squeeze(_folder: Folder, op: Op, inputs: list[Array]) -> Array:
    return inputs[0].reshape(squeezed(inputs[0].shape, axes_of(op, inputs)))


def _unsqueeze(_folder: Folder, op: Op, inputs: list[Array]) -> Array:
    return inputs[0].reshape(unsqueezed(inputs[0].shape, axes_of(op, inputs) or []))


def _reshape(_folder: Folder, op: Op, inputs: list[Array]) -> Array:
    dims = [int(dim) for dim in inputs[1].reshape(-1)] if len(inputs) > 1 else op.get("shape")
    return inputs[0].reshape(reshaped(inputs[0].shape, dims, bool(op.get("allowzero", 0))))


def flattened(shape: Sequence[int], axis: int) -> tuple[int, int]:
    """The shape that Flatten makes."""
    axis = axis + len(shape) if axis < 0 else axis
    return prod(shape[:axis]), prod(shape[axis:])


def _transpose(_folder: Folder, op: Op, inputs: list[Array]) -> Array:
    return np.asarray(inputs[0].transpose(op.get("perm")))


def _cast(_folder: Folder, op: Op, inputs: list[Array]) -> Array:
    return np.asarray(inputs[0], TYPES[op.attributes["to"]])


def _power(a: Array, b: Array) -> Array:
    return np.asarray(np.power(a, b.astype(a.dtype)))


_FOLDS: Mapping[str, Fold] = {
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Shape": lambda _f, op, x: np.array(x[0].shape[op.get("start", 0) : op.get("end")], np.int64),
    "Size": lambda _f, _op, x: np.array(x[0].size, np.int64),
    "Identity": lambda _f, _op, x: x[0],
    "Dropout": lambda _f, _op, x: x[0],
    "Cast": _cast,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Flatten": lambda _f, op, x: x[0].reshape(flattened(x[0].shape, op.get("axis", 1))),
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Div": _elementwise(_divide),
    "Pow": _elementwise(_power),
    "Mod": _elementwise(np.mod),
    "Min": _elementwise(lambda *x: np.minimum.reduce(np.broadcast_arrays(*x))),
    "Max": _elementwise(lambda *x: np.maximum.reduce(np.broadcast_arrays(*x))),
    "Neg": _elementwise(np.negative),
    "Abs": _elementwise(np.abs),
    "Sqrt": _elementwise(np.sqrt),
    "Exp": _elementwise(np.exp),
    "Log": _elementwise(np.log),
    "Floor": _elementwise(np.floor),
    "Ceil": _elementwise(np.ceil),
    "Reciprocal": _elementwise(np.reciprocal),
    "Equal": _compare(np.equal),
    "Greater": _compare(np.greater),
    "Less": _compare(np.less),
    "Not": _compare(np.logical_not),
    "And": _compare(np.logical_and),
    "Or": _compare(np.logical_or),
    "Where": _compare(np.where),
    "ReduceSum": _reduction(np.sum),
    "ReduceProd": _reduction(np.prod),
    "ReduceMean": _reduction(np.mean),
    "ReduceMax": _reduction(np.max),
    "ReduceMin": _reduction(np.min),
}
