"""Reading .onnx files without loading their weights."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message

from caffe_compat.errors import BinaryError
from caffe_compat.mapped import map_file
from caffe_compat.preprocessing import carried
from caffe_compat.tags import BYTES, Field, Tags, encode_varint
from caffe_compat.wire import refuse_other_kinds
from converters.inspect import Inspection, Row, Shape, about

GRAPH, INITIALIZER, NAME, RAW_DATA = 7, 5, 8, 9
"""Numbers of ModelProto.graph, GraphProto.initializer, and TensorProto.name and raw_data."""
MAPPED = 1 << 16
"""Bytes from which values are left in the file."""
VALUES = {4, 5, 6, 7, 9, 10, 11}
"""Numbers of TensorProto's fields of values."""
FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
}


def read_model(path: Path) -> onnx.ModelProto:
    """The model with initializers that have no values; external data stays where it is.

    Raises:
        VggcError: there is no such file, or it may not be read.
        BinaryError: not an ONNX file.
    """
    source = str(path)
    data = map_file(source)
    refuse_other_kinds(data, source, "an ONNX model")
    remedy = "check that it was copied whole"
    try:
        model = onnx.ModelProto.FromString(b"".join(_skeleton(Tags(data, source), len(data))))
        check_text(model)
    except (DecodeError, ValueError) as error:
        raise BinaryError(f"not an ONNX model: {error}", where=source, remedy=remedy) from error
    if not model.opset_import or not model.graph.node:
        raise BinaryError("not an ONNX model: it has no graph", where=source, remedy="check where it came from")
    return model


@dataclass(frozen=True)
class Stored:
    """Values of initializers that were left in the mapped file.

    Attributes:
        path: the file.
        data: its map.
        places: initializer -> offset and bytes of its raw_data.
    """

    path: str
    data: mmap.mmap
    places: Mapping[str, tuple[int, int]]


def read_mapped(path: Path) -> tuple[onnx.ModelProto, Stored]:
    """The whole model, but for large raw_data, which stay in the mapped file; external data stay where they are.

    Raises:
        VggcError: there is no such file, or it may not be read.
        BinaryError: not an ONNX file.
    """
    source = str(path)
    data = map_file(source)
    refuse_other_kinds(data, source, "an ONNX model")
    tags, places = Tags(data, source), dict[str, tuple[int, int]]()

    def initializer(field: Field) -> bytes:
        if field.number != INITIALIZER or field.wire != BYTES:
            return data[field.start : field.end]
        parts = list(tags.fields(field.value, field.end))
        names = [data[each.value : each.end] for each in parts if each.number == NAME and each.wire == BYTES]
        raw = [each for each in parts if each.number == RAW_DATA and each.wire == BYTES]
        name = names[-1].decode("utf-8", "surrogateescape") if names else ""
        places.pop(name, None)  # of two with one name the last counts
        if not raw or raw[-1].end - raw[-1].value < MAPPED:
            return data[field.start : field.end]
        places[name] = raw[-1].value, raw[-1].end - raw[-1].value
        body = b"".join(data[each.start : each.end] for each in parts if each.number != RAW_DATA)
        return encode_varint(INITIALIZER << 3 | BYTES) + encode_varint(len(body)) + body

    try:
        pieces = [_without(tags, part, GRAPH, initializer) for part in tags.fields(0, len(data))]
        return onnx.ModelProto.FromString(b"".join(pieces)), Stored(source, data, places)
    except DecodeError as error:
        what = f"not an ONNX model: {error}"
        raise BinaryError(what, where=source, remedy="check that it was copied whole") from error


def _skeleton(tags: Tags, end: int) -> Iterator[bytes]:
    """A model's bytes without the values of its initializers."""
    for part in tags.fields(0, end):
        yield _without(tags, part, GRAPH, lambda field: _without(tags, field, INITIALIZER, _shape_only(tags)))


def _shape_only(tags: Tags) -> Callable[[Field], bytes]:
    return lambda field: b"" if field.number in VALUES else tags.data[field.start : field.end]


def _without(tags: Tags, part: Field, number: int, inner: Callable[[Field], bytes]) -> bytes:
    """A field as it stands; a message of that number from what `inner` makes of its fields."""
    if part.number != number or part.wire != BYTES:
        return tags.data[part.start : part.end]
    body = b"".join(map(inner, tags.fields(part.value, part.end)))
    return encode_varint(number << 3 | BYTES) + encode_varint(len(body)) + body


def check_text(message: Message) -> None:
    """See to it that all strings are text; protobuf gives those that are not as bytes."""
    for field, value in message.ListFields():
        for each in [value] if field.has_presence else value:
            if field.type == field.TYPE_MESSAGE:
                check_text(each)
            elif field.type == field.TYPE_STRING and isinstance(each, bytes):
                raise ValueError(f"{field.full_name} is not UTF-8")


def inspect_onnx(path: Path) -> Inspection:
    """Nodes with the initializers that they read; only floating point ones count as parameters."""
    model = read_model(path)
    graph = model.graph
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    known = {tensor.name for tensor in graph.initializer}
    rows = tuple(_rows(graph))
    return Inspection(
        str(path),
        "onnx",
        path.stat().st_size,
        name=graph.name,
        inputs={info.name: _shape(info) for info in graph.input if info.name not in known},
        outputs={info.name: _shape(info) for info in graph.output},
        rows=rows,
        parameters=sum(row.parameters for row in rows),
        notes=tuple(_notes(model)),
        preprocessing=carried(metadata),
        metadata=about(metadata),
    )


def _rows(graph: onnx.GraphProto) -> Iterator[Row]:
    weights = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {info.name: _shape(info) for info in (*graph.value_info, *graph.output)}
    counted: set[str] = set()
    for node in graph.node:
        read = [weights[name] for name in node.input if name in weights]
        new = {tensor.name: prod(tensor.dims) for tensor in read if tensor.data_type in FLOATS}
        count = sum(size for name, size in new.items() if name not in counted)
        counted.update(new)
        tops = {name: shapes.get(name, ()) for name in node.output}
        bottoms = tuple(name for name in node.input if name not in weights)
        yield Row(node.name, node.op_type, bottoms, tops, tuple(tuple(t.dims) for t in read), count, 0)


def _notes(model: onnx.ModelProto) -> Iterator[str]:
    yield "opset " + ", ".join(f"{each.domain or 'ai.onnx'} {each.version}" for each in model.opset_import)
    if model.producer_name:
        yield f"written by {model.producer_name} {model.producer_version}".rstrip()
    files = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    yield from (f"weights are in {name}" for name in sorted(files))


def _shape(info: onnx.ValueInfoProto) -> Shape:
    """Sizes; one that is left open has its name, or "?"."""
    dims = info.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims)
