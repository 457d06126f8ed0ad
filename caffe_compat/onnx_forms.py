"""ONNX forms that several layers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from caffe_compat.layers.base import OnnxWriter, Shape

FLOAT, INT64, BOOL = 1, 7, 9
"""TensorProto.DataType, for Cast."""


def append_axes(g: OnnxWriter, name: str, shape: Shape, count: int) -> str:
    """`name`, of that shape, with `count` axes of size 1 after its own; sizes are copied, so they may be dynamic."""
    return reshape(g, name, [0] * len(shape) + [1] * count)[0] if count else name


def reshape(g: OnnxWriter, name: str, shape: Sequence[int], outputs: Sequence[str] | int = 1) -> list[str]:
    """Reshape to constant sizes; 0 copies the size of that axis, -1 takes what remains."""
    return g.op("Reshape", [name, g.constant(np.array(shape, np.int64))], outputs)


def reduce(
    g: OnnxWriter, kind: str, name: str, axes: Sequence[int], keepdims: bool, outputs: Sequence[str] | int = 1
) -> list[str]:
    """Reduce over axes; operator set 18 (ReduceSum: 13) made the axes an input."""
    if g.opset >= 18 or kind == "ReduceSum":
        return g.op(kind, [name, g.constant(np.array(axes, np.int64))], outputs, keepdims=int(keepdims))
    return g.op(kind, [name], outputs, axes=list(axes), keepdims=int(keepdims))


def resize(g: OnnxWriter, name: str, size: Sequence[int], outputs: Sequence[str] | int = 1, **modes: Any) -> list[str]:
    """Resize the last axes of (N, C, ...) to a constant size; N and C are copied, so they may be dynamic."""
    wanted = g.constant(np.array(size, np.int64))
    if g.opset >= 18:
        return g.op("Resize", [name, "", "", wanted], outputs, axes=list(range(2, 2 + len(size))), **modes)
    start, end = (g.constant(np.array([value], np.int64)) for value in (0, 2))
    kept = g.op("Slice", [*g.op("Shape", [name]), start, end])
    return g.op("Resize", [name, "", "", *g.op("Concat", [*kept, wanted], axis=0)], outputs, **modes)
