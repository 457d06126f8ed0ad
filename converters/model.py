"""What every writer gets: a graph, its weights, and what is to be said about them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from caffe_compat.graph import Graph, ParamKey
from caffe_compat.layers.base import Layer, Shape, registered
from caffe_compat.loading import NET
from caffe_compat.tensor_weights import NAMES, is_index
from caffe_compat.textformat import dump
from caffe_compat.weights import Blob, LayerBlobs, Weights

EXCHANGED = "exchanged_channels"
"""The metadata entry with the input whose blue and red have been exchanged."""


@dataclass(frozen=True)
class NamedBlob:
    """A parameter blob with the name and shape that it has in the target.

    Attributes:
        layer: the layer's name.
        index: its place among the layer's blobs; -1 when neither the file nor a net tells it.
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
        renamed: owner of a parameter blob -> the name to write in place of Caffe's `<layer>.<blob>`.
        reshaped: owner of a renamed blob -> the shape that goes with that name, in files of weights.
        exchanged: the input of which the net takes blue and red in each other's place, "" for none.
    """

    graph: Graph | None
    arrays: Mapping[ParamKey, Blob]
    weights: Weights
    notes: tuple[str, ...] = ()
    preprocessing: Mapping[str, object] = field(default_factory=dict)
    renamed: Mapping[ParamKey, str] = field(default_factory=dict)
    reshaped: Mapping[ParamKey, Shape] = field(default_factory=dict)
    exchanged: str = ""

    def blobs(self) -> Iterator[NamedBlob]:
        """Each parameter blob once, in Caffe's order; shared ones under their owner."""
        if self.graph is None:
            yield from _unbound(self.weights)
            return
        for position, node in enumerate(self.graph.nodes):
            for index, (key, shape) in enumerate(zip(node.params, node.blob_shapes, strict=True)):
                if key == ParamKey(position, index) and key in self.arrays:
                    made = self.reshaped.get(key, shape)
                    yield NamedBlob(node.layer.name, index, self.name(key), made, self.arrays[key])

    def name(self, key: ParamKey) -> str:
        """The name of a parameter blob in the target, by its owner."""
        if key in self.renamed or self.graph is None:
            return self.renamed[key]
        return own_name(self.graph, key)

    def metadata(self) -> dict[str, str]:
        """What travels inside an artefact: the net as prototxt text of the newest generation, whose semantics, which
        fork's layers, how images are prepared, our version."""
        entries = {"format": "pt", "vggc_version": tool_version()}
        if self.graph is not None:
            context = self.graph.context
            entries |= {NET: dump(self.graph.net), "caffe_profile": context.profile}
            entries |= {"caffe_dialect": context.dialect} if context.dialect else {}
        if self.preprocessing:
            entries["preprocessing"] = json.dumps(self.preprocessing, sort_keys=True)
        if self.exchanged:
            entries[EXCHANGED] = self.exchanged
        if self.renamed:
            entries[NAMES] = json.dumps(dict(self._places()), sort_keys=True)
        return entries

    def _places(self) -> Iterator[tuple[str, tuple[str, int, str, Shape]]]:
        """Names that are not Caffe's -> layer, the blob's place in it and its own name, and Caffe's shape."""
        if self.graph is None:
            return
        for key, name in self.renamed.items():
            node = self.graph.nodes[key.node]
            if name != own_name(self.graph, key):
                blob = blob_name(type(node.layer), key.blob)
                yield name, (node.layer.name, key.blob, blob, node.blob_shapes[key.blob])


def _unbound(weights: Weights) -> Iterator[NamedBlob]:
    """Blobs as the file has them, when there is no graph to say better; of two layers with one name the last."""
    types = {kind: cls for kind, _scope, cls in registered()}
    for layer in {layer.name: layer for layer in weights}.values():
        cls = types.get(layer.type)
        for (index, name), blob in zip(_places(layer), layer.blobs, strict=True):
            known = blob_name(cls, index) if cls and index >= 0 else name
            yield NamedBlob(layer.name, index, f"{layer.name}.{known}", blob.shape, blob)


def _places(layer: LayerBlobs) -> list[tuple[int, str]]:
    """(index, name) of each blob of a layer in a file.

    A name that is a word tells its place when it has the same one in all of Caffe's own layer types with the words
    given, or else in all of the forks'.
    """
    names = layer.names or tuple(map(str, range(len(layer.blobs))))
    words = {name for name in names if not is_index(name)}
    known = [cls for _kind, _scope, cls in registered() if words and words <= set(cls.BLOBS)]
    able = [cls.BLOBS for cls in known if not cls.DIALECTS] or [cls.BLOBS for cls in known]
    found = []
    for name in names:
        places = {blobs.index(name) for blobs in able if name in words} or {int(name) if is_index(name) else -1}
        found.append((places.pop() if len(places) == 1 else -1, name))
    return found


def own_name(graph: Graph, key: ParamKey) -> str:
    """Caffe's name of a parameter blob, by its owner: `<layer>.<blob>`."""
    layer = graph.nodes[key.node].layer
    return f"{layer.name}.{blob_name(type(layer), key.blob)}"


def blob_name(cls: type[Layer], index: int) -> str:
    """The name of a layer type's parameter blob, its index where the type names none."""
    return cls.BLOBS[index] if index < len(cls.BLOBS) else str(index)


def tool_version() -> str:
    """The installed version of vggc."""
    try:
        return version("vggc")
    except PackageNotFoundError:
        return "0+unknown"
