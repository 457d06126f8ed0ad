"""Reading .onnx files without loading their weights."""

from __future__ import annotations

from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from caffe_compat.errors import BinaryError
from converters.inspect import Inspection, Row, Shape


def read_model(path: Path) -> onnx.ModelProto:
    """The model; external data stays where it is.

    Raises:
        BinaryError: not an ONNX file.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise BinaryError(
            f"not an ONNX model: {error}", where=str(path), remedy="check that it was copied whole"
        ) from error
    if not model.opset_import or not model.graph.node:
        raise BinaryError("not an ONNX model: it has no graph", where=str(path), remedy="check where it came from")
    return model


def inspect_onnx(path: Path) -> Inspection:
    """Nodes with the initializers that they read."""
    model = read_model(path)
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    infos = [*model.graph.value_info, *model.graph.output]
    shapes = {info.name: _shape(info) for info in infos}
    opsets = ", ".join(f"{each.domain or 'ai.onnx'} {each.version}" for each in model.opset_import)
    counted: set[str] = set()
    rows = []
    for node in model.graph.node:
        read = [name for name in node.input if name in sizes]
        new = [name for name in read if name not in counted]
        counted.update(new)
        tops = {name: shapes.get(name, ()) for name in node.output}
        bottoms = tuple(name for name in node.input if name not in sizes)
        params = tuple(sizes[name] for name in read)
        rows.append(Row(node.name, node.op_type, bottoms, tops, params, sum(prod(sizes[name]) for name in new), 0))
    return Inspection(
        str(path),
        "onnx",
        path.stat().st_size,
        name=model.graph.name,
        inputs={info.name: _shape(info) for info in model.graph.input if info.name not in sizes},
        outputs={info.name: _shape(info) for info in model.graph.output},
        rows=tuple(rows),
        parameters=sum(row.parameters for row in rows),
        notes=(f"opset {opsets}",),
    )


def _shape(info: onnx.ValueInfoProto) -> Shape:
    """Sizes; 0 stands for one that is left open."""
    return tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
