"""A program becomes a net: every operator goes to its rule, all refusals are collected."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TypeVar

import numpy as np

from caffe_compat.errors import VggcError, raise_all
from caffe_compat.schema import pb
from caffe_compat.weights import Weights
from converters.importing.builder import Builder, Unmade, Value
from converters.importing.options import ImportOptions
from converters.importing.outputs import finish
from converters.importing.program import Op, Program, Shape

Rule = Callable[[Builder, Op], Sequence[Value]]
R = TypeVar("R", bound=Rule)

UNKNOWN = (-1,)
"""The shape of what could not be made and of which the source says none."""
_RULES: dict[str, Rule] = {}
GROUPS = (
    "activation",
    "arithmetic",
    "convolution",
    "dense",
    "normalisation",
    "pooling",
    "reduction",
    "resizing",
    "shaping",
)
"""The files of this package that hold rules."""

REASONS = {
    "LogSoftmax": ("Log of Softmax loses what LogSoftmax keeps", "end the model with Softmax"),
    "InstanceNormalization": ("MVN adds eps to the deviation, ONNX to the variance", "train with BatchNormalization"),
    "LayerNormalization": ("no layer normalises over channels of one item with this eps", "cut the model before it"),
    "GroupNormalization": ("no layer normalises over groups of channels", "train with BatchNormalization"),
    "Gelu": ("no layer computes the error function", "train with Relu or HardSwish"),
    "Erf": ("no layer computes the error function", "train with Relu or HardSwish"),
    "If": ("a net of Caffe has no branches", "export the branch that is taken"),
    "Loop": ("a net of Caffe has no loops", "unroll the loop in the export"),
    "Scan": ("a net of Caffe has no loops", "unroll the loop in the export"),
    "ArgMax": ("of equal values Caffe's ArgMax takes the last, ONNX the first", "cut the model before it"),
    "NonMaxSuppression": ("no layer does it", "cut the model before it"),
}
"""Operators that have no rule, why, and what would help."""


@dataclass(frozen=True)
class Imported:
    """A net that was made of another program.

    Attributes:
        net: of the newest generation, without blobs.
        weights: all its blobs.
        notes: what a user should know: what was folded, rewritten or left out.
        losses: those of the notes that tell of something left out or cast.
    """

    net: pb.NetParameter
    weights: Weights
    notes: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()


def rule(*kinds: str) -> Callable[[R], R]:
    """Decorator: the function makes the layers for these operators and returns what their outputs are.

    Raises:
        ValueError: another rule has one of them already.
    """

    def register(function: R) -> R:
        for kind in kinds:
            if _RULES.setdefault(kind, function) is not function:
                raise ValueError(f"there is a rule for {kind} already")
        return function

    return register


@cache
def rules() -> dict[str, Rule]:
    """Operator -> its rule."""
    for group in GROUPS:
        importlib.import_module(f"converters.importing.{group}")
    return dict(sorted(_RULES.items()))


def translate(program: Program, options: ImportOptions | None = None) -> Imported:
    """Make a Caffe net that computes what the program does.

    Raises:
        ConversionError: an operator has no exact form in Caffe; `Problems` with all of them when there are several.
    """
    builder = Builder(program, options or ImportOptions())
    problems: list[VggcError] = []
    for op in program.needed():
        builder.enter(op)
        try:
            values = _run(builder, op)
        except Unmade:
            values = _unknown(op)
        except VggcError as error:
            problems.append(error)
            values = _unknown(op)
        builder.leave(op, values)
    raise_all(problems)
    net, weights = finish(builder)
    losses = tuple(dict.fromkeys(builder.losses))
    return Imported(net, weights, tuple(dict.fromkeys([*losses, *builder.notes])), losses)


def _run(builder: Builder, op: Op) -> Sequence[Value]:
    """What an operator's outputs are: constants, or what its rule makes."""
    inputs = [builder.values[name] if name else None for name in op.inputs]
    folded = _folded(builder, op, inputs)
    if folded is not None:
        return folded
    if op.kind not in rules():
        what, remedy = REASONS.get(op.kind, ("no layer of Caffe computes it", "cut the model before it, or replace it"))
        raise op.refuse(what, remedy)
    if any(value is not None and value.shape == UNKNOWN for value in inputs):
        raise Unmade
    values = rules()[op.kind](builder, op)
    _check(op, values)
    return values


def _folded(builder: Builder, op: Op, inputs: Sequence[Value | None]) -> list[Value] | None:
    """The outputs when they are constants; Shape and Size need no more than a shape."""
    if op.kind in ("Shape", "Size") and inputs and inputs[0] is not None:
        builder.forget(inputs[0])
        shape = _known(inputs[0])
        array = np.array(shape[op.get("start", 0) : op.get("end")] if op.kind == "Shape" else prod(shape), np.int64)
        return [Value(array.shape, array=array)]
    if any(value is not None and value.array is None for value in inputs):
        return None
    made = builder.folder.fold(op, [None if value is None else value.array for value in inputs])
    origins = {value.origin for value in inputs if value is not None and value.origin and _is_float(value)}
    origin = origins.pop() if len(origins) == 1 else ""
    return None if made is None else [Value(array.shape, array=array, origin=origin) for array in made]


def _is_float(value: Value) -> bool:
    return value.array is not None and value.array.dtype.kind == "f"


def _known(value: Value) -> Shape:
    if value.shape == UNKNOWN:
        raise Unmade
    return value.shape


def _check(op: Op, values: Sequence[Value]) -> None:
    """The source's own inference must agree about the shapes."""
    for name, value, shape in zip(op.outputs, values, op.shapes, strict=False):
        if name and shape is not None and shape != value.shape:
            what = f'"{name}" would have the shape {value.shape}, the model says {shape}'
            raise op.refuse(what, "please report this model")


def _unknown(op: Op) -> list[Value]:
    """Stand-ins for outputs that could not be made, so that rules can judge what reads them."""
    shapes = [*op.shapes, *[None] * len(op.outputs)]
    return [Value(UNKNOWN if shape is None else shape) for _, shape in zip(op.outputs, shapes, strict=False)]


def refuse_unless(ok: bool, op: Op, what: str, remedy: str) -> None:
    """Raise ConversionError unless `ok`."""
    if not ok:
        raise op.refuse(what, remedy)
