"""Whether a file that was just written is what it should be.

The cheap half is done for every target: the file is opened again under its temporary name, with the reader of its
format, and the bytes of every parameter blob are compared with those that were to be written. The numerical half runs
source and result on one input, and is done for `--verify`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.binding import bind
from caffe_compat.errors import ConversionError
from caffe_compat.loading import State
from caffe_compat.mapped import map_file
from caffe_compat.tags import BYTES, Field, Tags
from caffe_compat.tensor_weights import is_index
from caffe_compat.weight_files import read_weights
from converters.model import Model, NamedBlob
from converters.pt import payloads

Bytes = NDArray[np.uint8]

WEIGHTS = ("safetensors", "pt", "h5", "caffemodel")
"""Formats that our own readers of weights open."""
STEP = 1 << 20
"""Bytes compared at a time."""
GRAPH, INITIALIZER, NAME, RAW_DATA, EXTERNAL_DATA = 7, 5, 8, 9, 13
"""Numbers of ModelProto.graph, GraphProto.initializer and of TensorProto's fields."""


@dataclass(frozen=True)
class Verified:
    """The numerical half.

    Attributes:
        agrees: every blob is within the tolerance.
        tolerance: relative to a blob's largest magnitude.
        compared: blobs that were compared.
        relative: the largest difference found, relative to the blob's largest magnitude.
        blob: where it was.
        outputs: the largest among the net's outputs.
        first: the first blob that is over the tolerance, "" when none is.
    """

    agrees: bool
    tolerance: float
    compared: int
    relative: float
    blob: str
    outputs: float
    first: str


# -- weights ---------------------------------------------------------------------------------------------------


def equal_blobs(model: Model, path: Path, kind: str, beside: Path | None = None) -> int:
    """How many parameter blobs a file has, all of which are the bytes of the model's.

    Args:
        model: what was written.
        path: where it lies now.
        kind: its format.
        beside: where the data of a large ONNX model lie now.

    Raises:
        ConversionError: one differs, or is missing where the format holds all.
    """
    if kind not in WEIGHTS and kind != "onnx":
        return 0
    found = _of_onnx(path, beside) if kind == "onnx" else _of_pt(path) if kind == "pt" else _of_weights(path)
    count = 0
    for item in model.blobs():
        there = found.get((item.layer, item.index), []) + found.get(item.name, [])
        if not there and kind == "onnx":
            continue  # put into another constant, or not used
        if not any(_same(item, values) for values in there):
            what = f"{item.name} is not in the result as it should be"
            raise ConversionError(what, where=str(path), remedy="check the disk, and report this if it is sound")
        count += 1
    return count


def _same(item: NamedBlob, there: Bytes) -> bool:
    ours = np.ascontiguousarray(item.blob.values).view(np.uint8)
    steps = range(0, ours.nbytes, STEP)
    return ours.nbytes == there.nbytes and all(np.array_equal(ours[i : i + STEP], there[i : i + STEP]) for i in steps)


def _of_weights(path: Path) -> Mapping[object, list[Bytes]]:
    """Name, or layer and index -> bytes of each blob so called."""
    found: dict[object, list[Bytes]] = {}
    for layer in read_weights(path):
        for index, blob in enumerate(layer.blobs):
            name = layer.names[index] if layer.names else str(index)
            key = (layer.name, int(name)) if is_index(name) else f"{layer.name}.{name}"
            found.setdefault(key, []).append(np.ascontiguousarray(blob.values).view(np.uint8))
    return found


def _of_pt(path: Path) -> Mapping[object, list[Bytes]]:
    return {name: [values] for name, values in payloads(path).items()}


def _of_onnx(path: Path, beside: Path | None) -> Mapping[object, list[Bytes]]:
    """Name -> bytes of each initializer, which stay in the mapped file."""
    data = map_file(str(path))
    data_beside = map_file(str(beside)) if beside else None
    found: dict[object, list[Bytes]] = {}
    for name, values in _initializers(Tags(data, str(path)), len(data), data, data_beside):
        found.setdefault(name, []).append(values)
    return found


def _initializers(tags: Tags, end: int, data: mmap.mmap, beside: mmap.mmap | None) -> Iterator[tuple[str, Bytes]]:
    for graph in tags.fields(0, end):
        if graph.number != GRAPH or graph.wire != BYTES:
            continue
        for part in tags.fields(graph.value, graph.end):
            if part.number == INITIALIZER and part.wire == BYTES:
                yield _initializer(list(tags.fields(part.value, part.end)), data, beside)


def _initializer(fields: list[Field], data: mmap.mmap, beside: mmap.mmap | None) -> tuple[str, Bytes]:
    name, values = "", np.empty(0, np.uint8)
    for each in fields:
        if each.number == NAME:
            name = data[each.value : each.end].decode()
        elif each.number == RAW_DATA:
            values = np.frombuffer(data, np.uint8, each.end - each.value, each.value)
    entries = [data[each.value : each.end] for each in fields if each.number == EXTERNAL_DATA]
    if entries and beside is not None:
        import onnx

        about = {entry.key: entry.value for entry in map(onnx.StringStringEntryProto.FromString, entries)}
        values = np.frombuffer(beside, np.uint8, int(about["length"]), int(about["offset"]))
    return name, values


# -- numbers ---------------------------------------------------------------------------------------------------


def verified(
    source: Path, original: Model, written: Model, path: Path, kind: str, tolerance: float, state: State
) -> Verified | None:
    """Run the source and the result on the same random input; None for a result that cannot be run by itself.

    Args:
        source: the file that was read; an ONNX model is run as it is.
        original: the model as it was read.
        written: the model as it was written, whose net runs a file of weights.
        path, kind: the result; one that carries its net is run with that.
        tolerance: see Verified.
        state: of nets that are read again.

    Raises:
        VggcError: one of them cannot be run.
    """
    from converters.sides import model_side, open_side

    if kind == "prototxt":
        return None
    if kind in ("pt", "h5") and written.graph is not None:
        arrays = bind(written.graph, read_weights(path)).arrays
        theirs = model_side(str(path), replace(written, arrays=arrays, renamed={}, reshaped={}))
    else:
        theirs = replace(open_side(path, None, state), exchanged=written.exchanged)
    ours = open_side(source) if source.suffix.lower() == ".onnx" else model_side(str(source), original)
    return summary(ours, theirs, tolerance)


def summary(ours: Any, theirs: Any, tolerance: float) -> Verified:
    """What a comparison of two sides comes to."""
    from converters.verify import Options, compare

    found = compare(ours, theirs, Options(tolerance=tolerance))
    relative = {row.name: row.beyond for row in found.blobs}
    blob = max(relative, key=lambda name: relative[name], default="")
    ends = [relative[name] for name in ours.outputs if name in relative]
    first = found.first.name if found.first else ""
    worst = relative.get(blob, 0.0)
    return Verified(found.agrees, tolerance, len(relative), worst, blob, max(ends, default=0.0), first)
