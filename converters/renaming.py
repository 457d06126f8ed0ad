"""Weights of other libraries under a net's own names, and the tables in which users state names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from caffe_compat.errors import ConversionError, FormatError, Where
from caffe_compat.graph import Graph, ParamKey
from caffe_compat.mapped import map_file
from caffe_compat.weights import Blob, LayerBlobs, Shape, Weights
from converters.model import own_name
from converters.names import Names, Renamed

LARGEST = 16 << 20
"""Bytes that a table may have."""


def read_table(path: Path | None) -> Mapping[str, str]:
    """A table of names: a JSON object, layer or `<layer>.<blob>` -> the name elsewhere; {} for no file.

    Raises:
        VggcError: the file cannot be read.
        FormatError: it is no such table.
    """
    if path is None:
        return {}
    remedy = 'write {"conv1": "features.0", ...}: names in the net, and those elsewhere'
    data = map_file(path)
    try:
        table = json.loads(data[:LARGEST].decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"this is not JSON: {error}", where=str(path), remedy=remedy) from error
    if not isinstance(table, dict) or not all(isinstance(name, str) and name for name in table.values()):
        raise FormatError("this is no table of names", where=str(path), remedy=remedy)
    return table


def in_nets_names(graph: Graph, weights: Weights, names: Names) -> Weights | None:
    """The weights under the net's names when the file has the others; None when it has none of these.

    Raises:
        ConversionError: the file has some, and lacks others.
        FormatError: a tensor does not have the values that the net needs.
    """
    there = {name: blob for layer in weights for name, blob in _named(layer)}
    wanted = {key: _found(key, made, there) for key, made in names.items() if made.name != own_name(graph, key)}
    lacking = [names[key].name for key, name in wanted.items() if not name]
    if len(lacking) == len(wanted):
        return None
    if lacking:
        what = f"it has no tensors called {', '.join(lacking[:8])}{' ...' if lacking[8:] else ''}"
        raise ConversionError(what, where=weights.source, remedy="give the weights of this net")
    layers: dict[str, list[tuple[str, Blob]]] = {}
    for key, name in wanted.items():
        node = graph.nodes[key.node]
        blob = _fitted(there.pop(name), name, names[key].shape, node.blob_shapes[key.blob], weights.source)
        layers.setdefault(node.layer.name, []).append((str(key.blob), blob))
    for name, blob in there.items():
        layer, _, own = name.rpartition(".")
        layers.setdefault(layer, []).append((own, blob))
    return replace(weights, layers=tuple(_gathered(name, blobs) for name, blobs in layers.items()))


def _named(layer: LayerBlobs) -> Iterator[tuple[str, Blob]]:
    """Each blob with its name in the file."""
    names = layer.names or tuple(map(str, range(len(layer.blobs))))
    return ((f"{layer.name}.{name}", blob) for name, blob in zip(names, layer.blobs, strict=True))


def _found(key: ParamKey, made: Renamed, there: Mapping[str, Blob]) -> str:
    """What the file calls a blob: by its name, or by its place in the layer; "" when it is not there."""
    placed = f"{made.name.rpartition('.')[0]}.{key.blob}"
    return next((name for name in (made.name, placed) if name in there), "")


def _fitted(blob: Blob, name: str, shape: Shape, own: Shape, source: str) -> Blob:
    """The blob in the net's shape; the file has the other library's, or that already."""
    if blob.matches(own):
        return blob
    if blob.shape != shape:
        sizes = " x ".join(map(str, blob.shape))
        what = f'tensor "{name}" is {sizes}; {" x ".join(map(str, shape))} is needed'
        raise FormatError(what, where=source, remedy="give the weights of this net")
    return replace(blob, shape=own)


def _gathered(layer: str, blobs: list[tuple[str, Blob]]) -> LayerBlobs:
    blobs.sort(key=lambda each: each[0])
    return LayerBlobs(layer, tuple(blob for _, blob in blobs), "", Where(layer=layer), tuple(name for name, _ in blobs))
