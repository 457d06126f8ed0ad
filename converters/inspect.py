"""Looking at a model of any format without running it: `inspect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from caffe_compat.errors import VggcError
from caffe_compat.graph import Graph, Node, ParamKey
from caffe_compat.loading import NET, Opened, State, open_net
from caffe_compat.mapped import kind_of, map_file
from caffe_compat.preprocessing import carried, color_channels, preprocessing
from caffe_compat.profiles import differences
from caffe_compat.profiles import notes as profile_notes
from caffe_compat.tensor_weights import NAMES
from caffe_compat.weight_files import read_weights
from caffe_compat.weights import Weights

MEANS = (".binaryproto", ".npy")
"""Suffixes of mean images."""
STATE = ".solverstate"
"""What the name of a solver state has in it."""
SHOWN = (NET, NAMES, "format", "preprocessing")
"""Entries of metadata that are shown in their own way, or tell a user nothing."""
Shape = tuple[int | str, ...]
"""Sizes of a blob; in ONNX models one that is left open has a name, usually "N"."""


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        tops: blob -> shape.
        params: shapes of the parameter blobs; those shared with an earlier layer count 0 in `parameters`.
        macs: multiply-accumulates of a forward pass at the declared shapes.
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: Mapping[str, Shape]
    params: tuple[Shape, ...]
    parameters: int
    macs: int
    place: str = ""


@dataclass(frozen=True)
class Inspection:
    """What a file is.

    Attributes:
        path, format, bytes: the file.
        generation: "V0", "V1", "V2", or "" for formats that are not Caffe's.
        inputs, outputs: blob -> shape.
        rows: the layers.
        parameters, macs: totals.
        notes: what would be replaced or dropped when it is converted.
        problems: everything that keeps it from running, with place and remedy.
        preprocessing: mean, scale, crop, channel order.
        metadata: what else a converted file says of itself, but for the net.
        dialect: the fork that the net is for, "" for none.
        dialect_reasons: the layers that tell.
        dialect_alike, dialect_others: forks that have these layers too, with the same and with another meaning.
    """

    path: str
    format: str
    bytes: int
    generation: str = ""
    name: str = ""
    inputs: Mapping[str, Shape] = field(default_factory=dict)
    outputs: Mapping[str, Shape] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    parameters: int = 0
    macs: int = 0
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    dialect: str = ""
    dialect_reasons: tuple[str, ...] = ()
    dialect_alike: tuple[str, ...] = ()
    dialect_others: tuple[str, ...] = ()


def resolve(name: str) -> Path:
    """A file, or one of the nets that come along ("E").

    Raises:
        VggcError: there is neither.
    """
    path = Path(name)
    if path.exists():
        return path
    import prototxt

    try:
        return prototxt.find(name)
    except LookupError as error:
        remedy = f"give a file, or one of {', '.join(prototxt.names())}"
        raise VggcError("no such file", where=name, remedy=remedy) from error


def inspect(path: Path, state: State | None = None) -> Inspection:
    """Look at a net, a weight file or an ONNX model.

    Raises:
        VggcError: the file cannot be read at all; what is wrong inside a net is in `problems`.
    """
    if path.suffix.lower() == ".onnx":
        from converters.onnx_reading import inspect_onnx

        return inspect_onnx(path)
    if STATE in path.name.lower():
        return _state(path)
    if path.suffix.lower() in MEANS:
        return _mean(path)
    kind = kind_of(map_file(path)).name
    if kind in ("HDF5", "zip"):
        return _weights(path, read_weights(path))
    if kind == "safetensors" and NET not in (weights := read_weights(path)).metadata:
        return _weights(path, weights)
    return _net(path, state or State())


def _mean(path: Path) -> Inspection:
    """A mean image: one row, and the mean of each channel."""
    from converters.mean import read

    values = read(path)
    row = Row("mean", "", (), {}, (values.shape,), values.size, 0)
    levels = " ".join(f"{value:g}" for value in values.reshape(len(values), -1).mean(1))
    kind = path.suffix.lower()[1:]
    told = {"channels": levels, "lowest": f"{values.min():g}", "highest": f"{values.max():g}"}
    return Inspection(str(path), kind, path.stat().st_size, rows=(row,), parameters=values.size, metadata=told)


def _state(path: Path) -> Inspection:
    """A solver state: a row for each history blob."""
    from caffe_compat.solvers.snapshot import read_state
    from converters.solver_state import about as about_state

    state = read_state(path)
    rows = [Row(f"history {i}", "", (), {}, (blob.shape,), blob.size, 0) for i, blob in enumerate(state.history)]
    count = sum(row.parameters for row in rows)
    return Inspection(
        str(path), "solverstate", path.stat().st_size, rows=tuple(rows), parameters=count, metadata=about_state(state)
    )


def _net(path: Path, state: State) -> Inspection:
    opened = open_net(path, state=state, collect=True, strict=False)
    graph = opened.graph
    rows = tuple(_row(graph, position, node) for position, node in enumerate(graph.nodes))
    bound = opened.bound.notes if opened.bound else ()
    known = opened.guess.notes()
    notes = (*(note for note in opened.notes if note not in known), *bound, *_profiles(opened, path, state))
    metadata = opened.weights.metadata if opened.weights else {}
    return Inspection(
        str(path),
        "prototxt" if opened.weights is None else opened.weights.format,
        path.stat().st_size,
        opened.generation,
        graph.name,
        dict(graph.inputs),
        {blob: graph.shapes[blob] for blob in graph.outputs},
        rows,
        sum(row.parameters for row in rows),
        sum(row.macs for row in rows),
        notes,
        tuple(str(problem) for problem in graph.problems),
        preprocessing(opened.original, color_channels(graph.shapes)) or carried(metadata),
        about(metadata),
        opened.guess.dialect,
        opened.guess.reasons,
        opened.guess.alternatives,
        (*opened.guess.rivals, *opened.guess.others),
    )


def about(metadata: Mapping[str, str]) -> dict[str, str]:
    """The entries that are not shown otherwise."""
    return {key: value for key, value in sorted(metadata.items()) if key not in SHOWN}


def _profiles(opened: Opened, path: Path, state: State) -> tuple[str, ...]:
    """Where the profiles would differ for a V0 net."""
    net, source, shapes = opened.original, opened.graph.source, state.input_shapes
    found = differences(net, source, phase=state.phase, input_shapes=shapes, folder=str(path.parent))
    return tuple(profile_notes(found))


def _row(graph: Graph, position: int, node: Node) -> Row:
    layer = node.layer
    own = [shape for i, shape in enumerate(node.blob_shapes) if node.params[i] == ParamKey(position, i)]
    place = layer.where()
    return Row(
        layer.name,
        layer.TYPE,
        tuple(value.blob for value in node.bottoms),
        {value.blob: graph.values[value] for value in node.tops},
        node.blob_shapes,
        sum(map(prod, own)),
        layer.macs(layer.bottom_shapes, layer.top_shapes_built),
        str(place).split(" layer ")[0],
    )


def _weights(path: Path, weights: Weights) -> Inspection:
    rows = tuple(
        Row(layer.name, layer.type, (), {}, shapes, sum(map(prod, shapes)), 0)
        for layer in weights
        if (shapes := tuple(blob.shape for blob in layer.blobs))
    )
    return Inspection(
        str(path),
        weights.format,
        path.stat().st_size,
        rows=rows,
        parameters=weights.count,
        notes=weights.notes,
        preprocessing=carried(weights.metadata),
        metadata=about(weights.metadata),
    )


def shapes_text(shapes: Sequence[Shape]) -> str:
    """Shapes as "64x3x3x3, 64"; a shape without axes is "scalar"."""
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)
