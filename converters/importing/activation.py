"""Functions of one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from converters.importing.arithmetic import affine, power, product
from converters.importing.builder import Builder, Value
from converters.importing.program import Array, Op
from converters.importing.translation import refuse_unless, rule

FLT_MAX = float(np.finfo(np.float32).max)

PLAIN = {
    "Relu": "ReLU",
    "Sigmoid": "Sigmoid",
    "Tanh": "TanH",
    "Exp": "Exp",
    "Log": "Log",
    "Abs": "AbsVal",
    "Softplus": "BNLL",
}
"""Operator -> the layer that computes the same without parameters."""


@rule(*PLAIN)
def plain(b: Builder, op: Op) -> list[Value]:
    """The layer of the same function."""
    return [b.one(op, PLAIN[op.kind], [b.read(op, 0)])]


@rule("LeakyRelu")
def leaky_relu(b: Builder, op: Op) -> list[Value]:
    """x or alpha x."""
    return [b.one(op, "ReLU", [b.read(op, 0)], negative_slope=op.get("alpha", 0.01))]


@rule("Greater")
def greater(b: Builder, op: Op) -> list[Value]:
    """1 above a constant number, else 0."""
    limit = b.weights(op, 1, "threshold")
    fits = limit.size == 1 and limit.ndim <= len(b.raw(op, 0).shape)
    refuse_unless(fits, op, f"{limit.size} thresholds", "compare with one number")
    made = b.one(op, "Threshold", [b.read(op, 0)], threshold=float(limit.reshape(-1)[0]))
    return [replace(made, integer=True)]


@rule("Elu")
def elu(b: Builder, op: Op) -> list[Value]:
    """x or alpha (exp(x) - 1)."""
    return [_elu(b, op, b.read(op, 0), op.get("alpha", 1.0))]


def _elu(b: Builder, op: Op, x: Value, alpha: float) -> Value:
    return b.one(op, "ELU", [x], alpha=alpha if alpha != 1 else None)


@rule("Selu")
def selu(b: Builder, op: Op) -> list[Value]:
    """gamma times ELU."""
    alpha, gamma = op.get("alpha", 1.6732632423543772), op.get("gamma", 1.0507009873554805)
    return [affine(b, op, _elu(b, op, b.read(op, 0), alpha), gamma, 0)]


@rule("Celu")
def celu(b: Builder, op: Op) -> list[Value]:
    """alpha times the ELU of x / alpha."""
    alpha = op.get("alpha", 1.0)
    refuse_unless(alpha > 0, op, f"alpha {alpha:g}", "use alpha > 0")
    inner = affine(b, op, b.read(op, 0), 1 / alpha, 0)
    return [affine(b, op, _elu(b, op, inner, 1.0), alpha, 0)]


@rule("PRelu")
def prelu(b: Builder, op: Op) -> list[Value]:
    """x or slope x: one slope for each channel, or one for all."""
    x, slope = b.read(op, 0), b.weights(op, 1, "slope")
    if slope.size == 1:
        return [b.one(op, "PReLU", [x], [slope.reshape(())], channel_shared=True)]
    rank = len(x.shape)
    full = (1,) * (rank - slope.ndim) + slope.shape
    channels = (1, x.shape[1], *[1] * (rank - 2)) if rank > 1 else ()
    refuse_unless(full == channels, op, f"slopes of the shape {list(slope.shape)}", "give one for each channel")
    return [b.one(op, "PReLU", [x], [slope.reshape(-1)])]


@rule("Clip")
def clip(b: Builder, op: Op) -> list[Value]:
    """Between two constants; above 0 alone it is ReLU."""
    low, high = (_limit(b, op, name, index) for index, name in ((1, "min"), (2, "max")))
    return [_clip(b, op, b.read(op, 0), low, high)]


def _limit(b: Builder, op: Op, name: str, index: int) -> float:
    """A limit from an input (newer) or attribute (older)."""
    default = -FLT_MAX if name == "min" else FLT_MAX
    value: Any = op.get(name, default)
    if op.version >= 11:
        given: Array | None = b.optional(op, index, name)
        value = default if given is None else given.reshape(-1)[0]
    return float(np.clip(np.float32(value), -FLT_MAX, FLT_MAX))


def _clip(b: Builder, op: Op, x: Value, low: float, high: float) -> Value:
    if (low, high) == (0, FLT_MAX):
        return b.one(op, "ReLU", [x])
    refuse_unless(low <= high, op, f"min {low:g} above max {high:g}", "state min <= max")
    return b.one(op, "Clip", [x], min=low, max=high)


@rule("HardSigmoid")
def hard_sigmoid(b: Builder, op: Op) -> list[Value]:
    """alpha x + beta between 0 and 1."""
    return [_hard(b, op, b.read(op, 0), op.get("alpha", 0.2), op.get("beta", 0.5))]


def _hard(b: Builder, op: Op, x: Value, alpha: float, beta: float, alone: bool = True) -> Value:
    return _clip(b, op, affine(b, op, x, alpha, beta, "line", alone=alone), 0.0, 1.0)


@rule("HardSwish")
def hard_swish(b: Builder, op: Op) -> list[Value]:
    """x times HardSigmoid with alpha 1/6 and beta 1/2."""
    x = b.read(op, 0)
    return [product(b, op, [x, _hard(b, op, x, 1 / 6, 0.5, alone=False)])]


@rule("Swish", "Silu")
def swish(b: Builder, op: Op) -> list[Value]:
    """x times Sigmoid(alpha x)."""
    x, alpha = b.read(op, 0), op.get("alpha", 1.0)
    inner = x if alpha == 1 else affine(b, op, x, alpha, 0, "scaled", alone=False)
    return [product(b, op, [x, b.one(op, "Sigmoid", [inner], suffix="sigmoid")])]


@rule("Mish")
def mish(b: Builder, op: Op) -> list[Value]:
    """x tanh(softplus(x))."""
    x = b.read(op, 0)
    inner = b.one(op, "TanH", [b.one(op, "BNLL", [x], suffix="softplus")], suffix="tanh")
    return [product(b, op, [x, inner])]


Shaper = Callable[[Builder, Op, Value], Value]

POWERS: dict[str, Shaper] = {
    "Sqrt": partial(power, exponent=0.5),
    "Reciprocal": partial(power, exponent=-1.0),
    "Neg": partial(affine, scale=-1.0, shift=0.0),
}
"""Operators that are a Power layer."""


@rule(*POWERS)
def powers(b: Builder, op: Op) -> list[Value]:
    """A constant power or factor."""
    return [POWERS[op.kind](b, op, b.read(op, 0))]


@rule("Pow")
def pow_(b: Builder, op: Op) -> list[Value]:
    """A constant power."""
    exponent = b.weights(op, 1, "exponent")
    refuse_unless(exponent.size == 1, op, f"{exponent.size} exponents", "use one exponent for all")
    refuse_unless(exponent.ndim <= len(b.raw(op, 0).shape), op, "an exponent of more axes", "use a scalar")
    return [power(b, op, b.read(op, 0), float(exponent.reshape(-1)[0]))]
