"""Weights in float16: what `--fp16` does.

Blobs with two axes or more are rounded: kernels and matrices, which are nearly all of a model. Vectors (biases,
statistics, scales, slopes) stay float32, and so does a blob with a value beyond float16's range. Models compute in
float32 as before: in ONNX a Cast follows each such weight.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from caffe_compat.graph import ParamKey
from caffe_compat.weights import Blob
from converters.model import Model, NamedBlob

WIDE = "/float32"
"""What a weight's name is followed by once it is float32 again."""


def halved(model: Model) -> Model:
    """The model with its kernels and matrices in float16, in memory, and a note about what was not rounded."""
    arrays: dict[ParamKey, Blob] = {}
    kept, lost = [], 0
    for key, blob in model.arrays.items():
        arrays[key] = blob
        if len(blob.shape) < 2:
            continue
        half = _half(blob.values)
        if half is None:
            kept.append(model.name(key))
            continue
        lost += int(np.count_nonzero((half == 0) & (blob.values != 0)))
        arrays[key] = replace(blob, values=half, path="", offset=-1)
    return replace(model, arrays=arrays, notes=(*model.notes, *_notes(arrays, kept, lost)))


def _half(values: NDArray[np.float32]) -> NDArray[np.float16] | None:
    """The values rounded to the nearest; None when one is beyond the range."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(np.isfinite(half), np.isfinite(values)) else None


def _notes(arrays: dict[ParamKey, Blob], kept: list[str], lost: int) -> list[str]:
    count = sum(blob.values.dtype == np.float16 for blob in arrays.values())
    notes = [f"{count} of {len(arrays)} parameter blobs are float16; vectors stay float32"]
    if kept:
        notes.append(f"these have values beyond float16's range and stay float32: {', '.join(kept)}")
    if lost:
        notes.append(f"{lost} value(s) are too small for float16 and became 0")
    return notes


def widen(model: onnx.ModelProto, used: list[NamedBlob]) -> None:
    """Put a Cast to float32 behind each float16 weight of an ONNX model, before all other nodes."""
    halves = [item.name for item in used if item.blob.values.dtype == np.float16]
    taken = {name for node in model.graph.node for name in (*node.input, *node.output, node.name)}
    wide = {}
    for name in halves:
        wide[name] = f"{name}{WIDE}"
        while wide[name] in taken:
            wide[name] += "_"
    for node in model.graph.node:
        node.input[:] = [wide.get(name, name) for name in node.input]
    casts = [helper.make_node("Cast", [name], [wide[name]], name=wide[name], to=TensorProto.FLOAT) for name in halves]
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
