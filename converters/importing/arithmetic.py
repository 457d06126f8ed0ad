"""Sums, products and the like of blobs and constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from converters.importing.builder import Builder, Made, Value, floats
from converters.importing.program import Array, Op, Shape
from converters.importing.translation import refuse_unless, rule

PROD, SUM, MAX = 0, 1, 2
"""EltwiseOp."""
SAME = 4e-7
"""Relative difference of products of float32 numbers that stand for 1."""


class Operand(NamedTuple):
    """A constant that meets the axes of a blob from `axis` on."""

    axis: int
    values: Array


# -- with numbers ------------------------------------------------------------------------------------------


def affine(b: Builder, op: Op, x: Value, scale: float, shift: float, suffix: str = "", *, alone: bool = True) -> Value:
    """scale x + shift, together with such a layer before it unless x has other uses (not `alone`)."""
    before, name = b.retract(x, "Power") if alone else None, ""
    if before is not None and before.param.power_param.power != 1:
        x = b.again(before)
        before = None
    if before is not None:
        own = before.param.power_param
        x, scale, shift = before.bottoms[0], scale * own.scale, scale * own.shift + shift
        name, suffix = before.param.name, ""
    if (scale, shift) == (1, 0):
        return x
    return _power_layer(b, op, x, suffix, name, scale=scale, shift=shift)


def power(b: Builder, op: Op, x: Value, exponent: float, suffix: str = "") -> Value:
    """x^exponent, together with a linear layer before it."""
    if exponent == 1:
        return x
    before = b.retract(x, "Power")
    if before is None:
        return _power_layer(b, op, x, suffix, power=exponent)
    own = before.param.power_param
    if own.power != 1:
        return _power_layer(b, op, b.again(before), suffix, power=exponent)
    return _power_layer(
        b, op, before.bottoms[0], "", before.param.name, scale=own.scale, shift=own.shift, power=exponent
    )


def _power_layer(
    b: Builder, op: Op, x: Value, suffix: str = "", name: str = "", scale: float = 1, shift: float = 0, power: float = 1
) -> Value:
    limit = float(np.finfo(np.float32).max)
    refuse_unless(
        max(map(abs, (scale, shift, power))) <= limit, op, "a constant beyond float32", "use smaller constants"
    )
    return b.one(
        op, "Power", [x], (), suffix, name=name,
        power=power if power != 1 else None, scale=scale if scale != 1 else None, shift=shift if shift != 0 else None,
    )  # fmt: skip


# -- with constants of several values ----------------------------------------------------------------------


def operand(op: Op, array: Array, shape: Shape) -> Operand:
    """A constant as Scale and Bias take it: without the axes at both ends over which it is repeated.

    Raises:
        ConversionError: the constant would enlarge the blob.
    """
    full = (1,) * (len(shape) - array.ndim) + array.shape
    fits = array.ndim <= len(shape) and all(size in (1, own) for size, own in zip(full, shape, strict=True))
    refuse_unless(
        fits, op, f"a constant of {list(array.shape)} enlarges a blob of {list(shape)}", "repeat the blob first"
    )
    met = [axis for axis, size in enumerate(full) if size != 1]
    first, last = met[0], met[-1] + 1
    values = array.reshape(full[first:last])
    return Operand(first, np.broadcast_to(values, shape[first:last]))


def scale(b: Builder, op: Op, x: Value, array: Array) -> Value:
    """x times a constant, together with such a layer before it."""
    if array.size == 1 and array.ndim <= len(x.shape):
        return affine(b, op, x, float(array.reshape(-1)[0]), 0)
    factor = operand(op, array, x.shape)
    before = b.retract(x, "Scale")
    if before is None or len(before.bottoms) > 1 or not _alike(before, factor, "scale_param"):
        x = x if before is None else b.again(before)
        return _operand_layer(b, op, "Scale", x, factor, [factor.values])
    blobs = [blob * factor.values for blob in before.blobs]
    if len(blobs) == 1 and np.allclose(blobs[0], 1, rtol=0, atol=SAME):
        return before.bottoms[0]
    return _operand_layer(b, op, "Scale", before.bottoms[0], factor, blobs, before.param.name)


def shift(b: Builder, op: Op, x: Value, array: Array) -> Value:
    """x plus a constant; weights before it take it as their bias where they have none."""
    if array.size == 1 and array.ndim <= len(x.shape):
        return affine(b, op, x, 1, float(array.reshape(-1)[0]))
    term = operand(op, array, x.shape)
    before = b.retract(x, "Scale", "Bias", "Convolution", "Deconvolution", "InnerProduct")
    if before is None:
        return _operand_layer(b, op, "Bias", x, term, [term.values])
    kind = before.param.type
    if kind in ("Scale", "Bias") and len(before.bottoms) == 1 and _alike(before, term, f"{kind.lower()}_param"):
        blobs = [*before.blobs[:-1], before.blobs[-1] + term.values]
        if kind == "Scale" and len(before.blobs) == 1:
            blobs = [before.blobs[0], term.values]
        return _operand_layer(b, op, kind, before.bottoms[0], term, blobs, before.param.name)
    if kind not in ("Scale", "Bias") and _takes_bias(before, term, x):
        before.blobs.append(np.ascontiguousarray(term.values))
        weights: Any = before.param
        (weights.inner_product_param if kind == "InnerProduct" else weights.convolution_param).ClearField("bias_term")
        return b.again(before)
    return _operand_layer(b, op, "Bias", b.again(before), term, [term.values])


def _alike(made: Made, other: Operand, param: str) -> bool:
    """Whether a Scale or Bias layer meets the same axes."""
    return made.blobs[0].shape == other.values.shape and getattr(made.param, param).axis == other.axis


def _takes_bias(made: Made, term: Operand, top: Value) -> bool:
    """Whether a layer with weights has no bias, and the constant has one number for each output."""
    rank = len(top.shape)
    at = rank - 1 if made.param.type == "InnerProduct" else 1
    return len(made.blobs) == 1 and term.axis == at and term.values.ndim == 1 and rank > 1


def _operand_layer(
    b: Builder, op: Op, kind: str, x: Value, what: Operand, blobs: Sequence[Array], name: str = ""
) -> Value:
    axes = what.values.ndim
    return b.one(
        op, kind, [x], blobs, name=name, axis=what.axis if what.axis != 1 else None,
        num_axes=(axes if what.axis + axes < len(x.shape) else -1) if axes != 1 else None,
        **({"bias_term": True} if kind == "Scale" and len(blobs) == 2 else {}),
    )  # fmt: skip


# -- of several blobs --------------------------------------------------------------------------------------


def product(b: Builder, op: Op, values: Sequence[Value]) -> Value:
    """The product of blobs of one shape."""
    return b.one(op, "Eltwise", values, operation=PROD)


def _prefix(small: Shape, large: Shape) -> int | None:
    """How many first axes of `large` the other shape has, being 1 behind them; None when it is not so."""
    met = len(small)
    while met and small[met - 1] == 1 and (met > len(large) or large[met - 1] != 1):
        met -= 1
    fits = len(small) == len(large) and small[:met] == large[:met] and all(size == 1 for size in small[met:])
    return met if fits else None


def _spread(b: Builder, op: Op, kind: str, left: Value, right: Value) -> Value:
    """A product (Scale) or sum (Bias) of two shapes of which one is repeated over the other."""
    from converters.importing.shaping import reshape

    if left.shape == right.shape:
        return b.one(op, "Eltwise", [left, right], operation=PROD if kind == "Scale" else None)
    for large, small in ((left, right), (right, left)):
        met = _prefix(small.shape, large.shape)
        if met is not None:
            flat = reshape(b, op, small, small.shape[:met], "operand")
            return b.one(op, kind, [large, flat], axis=0)
    shape = _common(op, left.shape, right.shape)
    return _spread(b, op, kind, repeated(b, op, left, shape), repeated(b, op, right, shape))


def _common(op: Op, left: Shape, right: Shape) -> Shape:
    try:
        return np.broadcast_shapes(left, right)
    except ValueError as error:
        raise op.refuse(f"blobs of {list(left)} and {list(right)}", "check the model with onnx.checker") from error


def repeated(b: Builder, op: Op, value: Value, shape: Shape) -> Value:
    """A blob repeated along its axes of size 1, and along new ones before them."""
    from converters.importing.shaping import reshape

    value = reshape(b, op, value, (1,) * (len(shape) - len(value.shape)) + value.shape, "axes")
    for axis, (size, wanted) in enumerate(zip(value.shape, shape, strict=True)):
        if size != wanted:
            value = b.one(op, "Tile", [value], suffix="tile", axis=axis if axis != 1 else None, tiles=wanted)
    return value


@rule("Add", "Mul")
def add_mul(b: Builder, op: Op) -> list[Value]:
    """A sum or product of two."""
    left, right = b.raw(op, 0), b.raw(op, 1)
    left, right = (right, left) if left.array is not None else (left, right)
    if right.array is not None:
        with_constant = shift if op.kind == "Add" else scale
        return [with_constant(b, op, b.blob(op, _of_rank(b, op, left, right.array)), floats(op, right.array))]
    return [_spread(b, op, "Bias" if op.kind == "Add" else "Scale", b.blob(op, left), b.blob(op, right))]


def _of_rank(b: Builder, op: Op, value: Value, array: Array) -> Value:
    """The blob with as many axes as a constant that has more."""
    if array.ndim <= len(value.shape):
        return value
    from converters.importing.shaping import reshape

    return reshape(b, op, b.blob(op, value), (1,) * (array.ndim - len(value.shape)) + value.shape)


@rule("Sub")
def sub(b: Builder, op: Op) -> list[Value]:
    """A difference of two."""
    left, right = b.raw(op, 0), b.raw(op, 1)
    if right.array is not None:
        return [shift(b, op, b.blob(op, _of_rank(b, op, left, right.array)), -floats(op, right.array))]
    if left.array is not None:
        constant = floats(op, left.array)
        negative = affine(b, op, b.blob(op, _of_rank(b, op, right, constant)), -1, 0, suffix="negative")
        return [shift(b, op, negative, constant)]
    left, right = b.blob(op, left), b.blob(op, right)
    if left.shape == right.shape:
        return [b.one(op, "Eltwise", [left, right], coeff=[1, -1])]
    negative = affine(b, op, right, -1, 0, suffix="negative")
    return [_spread(b, op, "Bias", left, negative)]


@rule("Div")
def div(b: Builder, op: Op) -> list[Value]:
    """A quotient of two: the product with the reciprocal."""
    left, right = b.raw(op, 0), b.raw(op, 1)
    if right.array is not None:
        divisor = floats(op, right.array)
        refuse_unless(bool(np.all(divisor)), op, "division by a constant 0", "remove it")
        return [scale(b, op, b.blob(op, _of_rank(b, op, left, divisor)), np.float32(1) / divisor)]
    if left.array is not None:
        constant = floats(op, left.array)
        inverse = power(b, op, b.blob(op, _of_rank(b, op, right, constant)), -1.0, "inverse")
        return [scale(b, op, inverse, constant)]
    left, right = b.blob(op, left), b.blob(op, right)
    inverse = power(b, op, right, -1.0, "inverse")
    return [_spread(b, op, "Scale", left, inverse)]


@rule("Sum", "Mean", "Max")
def several(b: Builder, op: Op) -> list[Value]:
    """The sum, mean or maximum of any number of blobs of one shape."""
    values = [b.blob(op, b.raw(op, index)) for index in range(len(op.inputs))]
    if len(values) == 1:
        return values
    _check_alike(op, values)
    coeff = [1 / len(values)] * len(values) if op.kind == "Mean" else None
    return [b.one(op, "Eltwise", values, operation=MAX if op.kind == "Max" else None, coeff=coeff)]


@rule("Min")
def minimum(b: Builder, op: Op) -> list[Value]:
    """The smallest: the largest of the negatives, negated."""
    values = [b.blob(op, b.raw(op, index)) for index in range(len(op.inputs))]
    _check_alike(op, values)
    negative = [affine(b, op, value, -1, 0, suffix="negative") for value in values]
    top = negative[0] if len(values) == 1 else b.one(op, "Eltwise", negative, suffix="maximum", operation=MAX)
    return [_power_layer(b, op, top, scale=-1)]


def _check_alike(op: Op, values: Sequence[Value]) -> None:
    shapes = [value.shape for value in values]
    what = f"blobs of {', '.join(str(list(shape)) for shape in shapes)}"
    refuse_unless(len(set(shapes)) == 1, op, what, "expand them to one shape before")
