"""What every writer gets: a graph, its weights, and what is to be said about them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from caffe_compat.graph import Graph, ParamKey
from caffe_compat.layers.base import Layer, Shape
from caffe_compat.textformat import dump
from caffe_compat.weights import Blob, Weights


@dataclass(frozen=True)
class NamedBlob:
    """A parameter blob with the name and shape that it has in the target.

    Attributes:
        layer: the layer's name.
        index: its place among the layer's blobs.
        name: `<layer>.<blob>`, e.g. "conv1_1.weight".
        shape: Caffe's shape for this net; the file may state a legacy one.
        blob: the values.
    """

    layer: str
    index: int
    name: str
    shape: Shape
    blob: Blob


@dataclass(frozen=True)
class Model:
    """A net with weights, ready to be written.

    Attributes:
        graph: None when the net cannot be built (unknown layers); then only weight formats can be written.
        arrays: owner of a parameter blob -> values that fit the graph.
        weights: all blobs of the source file.
        notes: sentences for the user: what was replaced, dropped or cast.
        preprocessing: mean, scale, crop and channel order that the net was trained with.
        renamed: Caffe's `<layer>.<blob>` -> the name to write, for blobs that get another one.
    """

    graph: Graph | None
    arrays: Mapping[ParamKey, Blob]
    weights: Weights
    notes: tuple[str, ...] = ()
    preprocessing: Mapping[str, object] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    def blobs(self) -> Iterator[NamedBlob]:
        """Each parameter blob once, in Caffe's order; shared ones under their owner."""
        if self.graph is None:
            yield from _unbound(self.weights)
            return
        for position, node in enumerate(self.graph.nodes):
            for index, (key, shape) in enumerate(zip(node.params, node.blob_shapes, strict=True)):
                if key == ParamKey(position, index) and key in self.arrays:
                    name = f"{node.layer.name}.{blob_name(type(node.layer), index)}"
                    yield NamedBlob(node.layer.name, index, self.renamed.get(name, name), shape, self.arrays[key])

    def metadata(self) -> dict[str, str]:
        """What travels inside an artefact: the net as upgraded prototxt text, preprocessing, our version."""
        entries = {"format": "pt", "vggc_version": tool_version()}
        if self.graph is not None:
            entries["caffe_net"] = dump(self.graph.net)
        if self.preprocessing:
            entries["preprocessing"] = json.dumps(self.preprocessing, sort_keys=True)
        return entries


def _unbound(weights: Weights) -> Iterator[NamedBlob]:
    """Blobs as the file has them, when there is no graph to say better."""
    from caffe_compat.layers.base import registered

    types = {kind: cls for kind, _scope, cls in registered()}
    last = {layer.name: layer for layer in weights}
    for layer in last.values():
        cls = types.get(layer.type)
        for index, blob in enumerate(layer.blobs):
            name = blob_name(cls, index) if cls else str(index)
            yield NamedBlob(layer.name, index, f"{layer.name}.{name}", blob.shape, blob)


def blob_name(cls: type[Layer], index: int) -> str:
    """The name of a layer type's parameter blob, its index where the type names none."""
    return cls.BLOBS[index] if index < len(cls.BLOBS) else str(index)


def tool_version() -> str:
    """The installed version of vggc."""
    try:
        return version("vggc")
    except PackageNotFoundError:
        return "0+unknown"
