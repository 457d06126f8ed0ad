"""Gemm, MatMul and look-ups in tables."""

from __future__ import annotations

from math import prod

import numpy as np

from converters.importing.builder import Builder, Value
from converters.importing.program import Array, Op
from converters.importing.translation import refuse_unless, rule

FOLD = "Caffe multiplies by constants only: fold it before export, or cut the model before it"


@rule("Gemm")
def gemm(b: Builder, op: Op) -> list[Value]:
    """alpha A B + beta C with constant B and C: InnerProduct."""
    refuse_unless(not op.get("transA", 0), op, "it transposes A", "put the batch first")
    weight = b.weights(op, 1, "B")
    refuse_unless(weight.ndim == 2, op, f"B has the shape {list(weight.shape)}", "check the model")
    weight = weight if op.get("transB", 0) else weight.T
    alpha, beta = op.get("alpha", 1.0), op.get("beta", 1.0)
    x = _unflattened(b, op, weight)
    bias = [_bias(b, op, weight.shape[0], beta)] if op.has(2) and beta else []
    return [_inner_product(b, op, x, weight * np.float32(alpha) if alpha != 1 else weight, bias, 1)]


def _bias(b: Builder, op: Op, outputs: int, beta: float) -> Array:
    """C as one number for each output."""
    values = b.weights(op, 2, "C")
    fits = values.size in (1, outputs) and values.shape[-1:] in ((), (1,), (outputs,))
    refuse_unless(fits, op, f"C has the shape {list(values.shape)}", f"give it the shape ({outputs},)")
    made = np.broadcast_to(values.reshape(-1), (outputs,))
    return made * np.float32(beta) if beta != 1 else made


def _unflattened(b: Builder, op: Op, weight: Array) -> Value:
    """The bottom; a Flatten before it is not needed, as InnerProduct takes all axes from the first on."""
    x = b.raw(op, 0)
    if x.array is not None or x.integer or x.pads:
        x = b.blob(op, x)
    fits = len(x.shape) == 2 and x.shape[1] == weight.shape[1]
    refuse_unless(fits, op, f"A is {list(x.shape)}, B takes {weight.shape[1]}", "check the model")
    made = b.retract(x, "Flatten", "Reshape")
    if made is None:
        return x
    bottom = made.bottoms[0]
    if bottom.shape[0] == x.shape[0] and prod(bottom.shape[1:]) == x.shape[1]:
        return bottom
    return b.again(made)


def _inner_product(b: Builder, op: Op, x: Value, weight: Array, bias: list[Array], axis: int) -> Value:
    return b.one(
        op, "InnerProduct", [x], [weight, *bias],
        num_output=weight.shape[0], bias_term=None if bias else False, axis=axis if axis != 1 else None,
    )  # fmt: skip


@rule("MatMul")
def matmul(b: Builder, op: Op) -> list[Value]:
    """A B with a constant matrix B: InnerProduct over the last axis."""
    left, right = b.raw(op, 0), b.raw(op, 1)
    refuse_unless(
        left.array is None and right.array is not None, op, "both factors are computed, or only A is constant", FOLD
    )
    weight = b.weights(op, 1, "B")
    refuse_unless(weight.ndim == 2, op, f"B has the shape {list(weight.shape)}", FOLD)
    rank = len(left.shape)
    fits = rank >= 2 and left.shape[-1] == weight.shape[0]
    refuse_unless(fits, op, f"A is {list(left.shape)}, B {list(weight.shape)}", "put a batch axis before the vector")
    x = _unflattened(b, op, weight.T) if rank == 2 else b.blob(op, left)
    return [_inner_product(b, op, x, weight.T, [], 1 if rank == 2 else rank - 1)]


@rule("Gather")
def gather(b: Builder, op: Op) -> list[Value]:
    """Rows of a constant table: Embed; constant places of a blob: parts of it one after another."""
    from converters.importing.shaping import take

    table, places = b.raw(op, 0), b.raw(op, 1)
    if table.array is None:
        return [take(b, op, b.blob(op, table), b.constant(op, 1, "indices"), op.get("axis", 0))]
    refuse_unless(places.integer, op, "indices that are no whole numbers", "feed whole numbers")
    weight = b.weights(op, 0, "table")
    right = weight.ndim == 2 and op.get("axis", 0) == 0
    refuse_unless(right, op, f"a table of {list(weight.shape)}, axis {op.get('axis', 0)}", "look rows up in a matrix")
    b.notes.append(f'"{op.name}": negative indices, which ONNX counts from the end, are refused by Caffe')
    index = Value(places.shape, places.blob)
    return [
        b.one(op, "Embed", [index], [weight], input_dim=weight.shape[0], num_output=weight.shape[1], bias_term=False)
    ]
