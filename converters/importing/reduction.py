"""Sums, means and maxima over axes."""

from __future__ import annotations

from converters.importing.builder import Builder, Value
from converters.importing.folding import axes_of
from converters.importing.pooling import everything
from converters.importing.program import Op
from converters.importing.shaping import reshape
from converters.importing.translation import refuse_unless, rule

OPERATIONS = {"ReduceSum": None, "ReduceL1": 2, "ReduceSumSquare": 3, "ReduceMean": 4}
"""Operator -> ReductionOp; None is its default, SUM."""


@rule(*OPERATIONS, "ReduceMax")
def reduce(b: Builder, op: Op) -> list[Value]:
    """Over the last axes: Reduction, or Pooling over (H, W)."""
    x = b.read(op, 0)
    rank = len(x.shape)
    axes = axes_of(op, [None, b.optional(op, 1, "axes")])
    if not axes and op.get("noop_with_empty_axes", 0):
        return [x]
    known = all(-rank <= axis < rank for axis in axes or ())
    refuse_unless(known, op, f"axes {axes} of {rank}", "check the model with onnx.checker")
    chosen = sorted(axis % rank for axis in axes) if axes else list(range(rank))
    kept = [1 if axis in chosen else size for axis, size in enumerate(x.shape)]
    shape = tuple(kept if op.get("keepdims", 1) else [n for axis, n in enumerate(kept) if axis not in chosen])
    if op.kind in ("ReduceMean", "ReduceMax") and chosen == list(range(2, rank)):
        return [reshape(b, op, everything(b, op, x, "AVE" if op.kind == "ReduceMean" else "MAX"), shape, "shape")]
    refuse_unless(
        op.kind != "ReduceMax", op, f"the maximum over axes {chosen}", "take it over the axes behind the channels"
    )
    first = _first(op, x, chosen)
    made = b.one(op, "Reduction", [x], operation=OPERATIONS[op.kind], axis=first if first else None)
    return [reshape(b, op, made, shape, "shape")]


def _first(op: Op, x: Value, chosen: list[int]) -> int:
    """The axis from which on all are reduced; axes of size 1 may be taken in."""
    rank = len(x.shape)
    moving = [axis for axis in chosen if x.shape[axis] != 1]
    first = min(moving, default=rank - 1 if chosen else rank)
    left = [axis for axis in range(first, rank) if axis not in chosen and x.shape[axis] != 1]
    refuse_unless(
        not left, op, f"axes {chosen} of {list(x.shape)}", "Caffe reduces the last axes only: move them there"
    )
    return first
