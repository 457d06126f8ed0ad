"""ONNX forms that several layers share."""

from __future__ import annotations

from collections.abc import Sequence

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
