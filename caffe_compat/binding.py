"""Weights put into a net's parameter blobs, exactly where Caffe would put them.

Rules: net.cpp (CopyTrainedLayersFrom, CopyTrainedLayersFromHDF5), blob.cpp (ShapeEquals, FromProto) of BVLC Caffe;
under "dec2013" net.cpp (CopyTrainedLayersFrom) of 3213bd87e, where all four sizes of a blob must be equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from caffe_compat.errors import VggcError, WeightsError, raise_all
from caffe_compat.fillers import legacy
from caffe_compat.graph import Graph, Node, ParamKey
from caffe_compat.tensor_weights import is_index
from caffe_compat.weights import Blob, LayerBlobs, Shape, Weights

KEPT = "rename the layer in the net to keep its filler's values instead"


@dataclass(frozen=True)
class Bound:
    """Weights that fit a graph, and what became of the rest.

    Attributes:
        arrays: owner of a parameter blob -> its values, float32, in the owner's shape.
        copied: layers whose blobs were taken from the file.
        missing: layers of the net with a blob that the file does not have; Caffe keeps their filler's values.
        unexpected: layers of the file with blobs that the net does not have; Caffe ignores them.
        reshaped: blobs that the file gives in four legacy sizes, as "<layer>[<index>]: <old> -> <new>".
        converted: blobs that were not float32, as "<layer>[<index>]: <type>".
    """

    arrays: Mapping[ParamKey, Blob]
    copied: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    converted: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know, in sentences."""
        said = (
            ("no weights in the file for {}: their fillers' values are kept", self.missing),
            ("the net has no layer called {}: their weights are not used", self.unexpected),
            ("converted to float32: {}", self.converted),
        )
        return tuple(text.format(", ".join(names)) for text, names in said if names)


def bind(graph: Graph, weights: Weights, *, strict: bool = True) -> Bound:
    """Match weights with a net by layer name.

    Args:
        graph: the net.
        weights: from any format; those of a caffemodel must have all blobs of a layer, the others may leave out
            shared ones.
        strict: refuse a net with layers that the weights do not have.

    Raises:
        WeightsError: a blob has another shape or a layer another number of blobs than the net (Caffe refuses these
            as well), or, when strict, a layer has no weights; `Problems` when there are several.
    """
    binder = _Binder(graph, weights)
    for entry in weights:
        binder.take(entry)
    missing = binder.missing()
    if strict:
        refused = {problem.where.layer for problem in binder.problems}
        binder.problems.extend(_absent(graph, weights, name) for name in missing if name not in refused)
    raise_all(binder.problems)
    return Bound(
        binder.arrays,
        tuple(dict.fromkeys(binder.copied)),
        missing,
        tuple(dict.fromkeys(binder.unexpected)),
        tuple(binder.reshaped),
        tuple(binder.converted),
    )


def _absent(graph: Graph, weights: Weights, name: str) -> WeightsError:
    where = graph.layer(name).layer.where()
    what = f"{weights.source or 'the weights'} has no weights for it"
    remedy = "give the weights of this net (in Python, strict=False keeps its fillers' values)"
    return WeightsError(what, where=where, remedy=remedy)


@dataclass
class _Binder:
    graph: Graph
    weights: Weights
    arrays: dict[ParamKey, Blob] = field(default_factory=dict)
    copied: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    problems: list[VggcError] = field(default_factory=list)

    def __post_init__(self) -> None:
        """A caffemodel's layer goes to the first of that name, another's to the last (layer_names_index_)."""
        nodes = list(enumerate(self.graph.nodes))
        in_turn = reversed(nodes) if self.weights.format == "caffemodel" else nodes
        self.targets = {node.layer.name: (index, node) for index, node in in_turn}

    def take(self, entry: LayerBlobs) -> None:
        """Copy one layer of the file, or note why not."""
        if entry.name not in self.targets:
            if entry.blobs:
                self.unexpected.append(entry.name)
            return
        index, node = self.targets[entry.name]
        places = self.places(entry, index, node)
        for place, blob in places.items():
            if self.fits(blob, node.blob_shapes[place]):
                self.put(node, place, blob)
            else:
                self.problems.append(_mismatch(node, place, blob))
        if places:
            self.copied.append(entry.name)

    def places(self, entry: LayerBlobs, index: int, node: Node) -> dict[int, Blob]:
        """Place in the layer -> blob; {} after a problem with their number or names."""
        count = len(node.blob_shapes)
        if self.weights.format == "caffemodel":
            if len(entry.blobs) != count:
                self.problems.append(_count(entry, node, f"has {len(entry.blobs)} blob(s)"))
                return {}
            return dict(enumerate(entry.blobs))
        names = entry.names or tuple(map(str, range(len(entry.blobs))))
        found = [_place(name, node) for name in names]
        shared = {place for place in range(count) if node.params[place] != ParamKey(index, place)}
        absent = set(range(count)) - set(found) - shared
        if absent or len(set(found)) < len(found) or not all(0 <= place < count for place in found):
            self.problems.append(_count(entry, node, f"has blob(s) {', '.join(names)}" if names else "has no blobs"))
            return {}
        return dict(zip(found, entry.blobs, strict=True))

    def fits(self, blob: Blob, shape: Shape) -> bool:
        """Whether Caffe would copy the blob; of the four sizes of dec2013 newer files may leave out leading ones."""
        return blob.matches(shape) or (self.graph.context.profile == "dec2013" and legacy(blob.shape) == shape)

    def put(self, node: Node, place: int, blob: Blob) -> None:
        """Fill the owner of a parameter blob; a later one in the file wins."""
        key = node.params[place]
        owner = self.graph.nodes[key.node]
        label, shape = f"{node.layer.name}[{place}]", owner.blob_shapes[key.blob]
        if blob.shape != node.blob_shapes[place]:
            self.reshaped.append(f"{label}: {_text(blob.shape)} -> {_text(node.blob_shapes[place])}")
        if blob.values.dtype != np.float32:
            self.converted.append(f"{label}: {blob.values.dtype}")
            blob = _float32(blob)
        self.arrays[key] = replace(blob, shape=shape, legacy=False)

    def missing(self) -> tuple[str, ...]:
        """Layers with a blob, own or shared, that nothing in the file filled."""
        return tuple(node.layer.name for node in self.graph.nodes if any(key not in self.arrays for key in node.params))


def _place(name: str, node: Node) -> int:
    """The place that a blob's name in a file stands for; -1 when the layer has no such blob."""
    if is_index(name):
        return int(name)
    return node.layer.BLOBS.index(name) if name in node.layer.BLOBS else -1


def _float32(blob: Blob) -> Blob:
    """The values as Caffe would hold them; beyond float32's range they become infinite."""
    with np.errstate(over="ignore"):
        return replace(blob, values=blob.values.astype(np.float32), path="", offset=-1)


def _count(entry: LayerBlobs, node: Node, has: str) -> WeightsError:
    """An error: other blobs than the net's layer has (Caffe: "Incompatible number of blobs")."""
    wanted = ", ".join(
        f"{node.layer.BLOBS[place] if place < len(node.layer.BLOBS) else place} {_text(shape)}"
        for place, shape in enumerate(node.blob_shapes)
    )
    what = f"the file {has}, the net's {node.layer.TYPE} layer needs {wanted or 'none'}"
    return WeightsError(
        what, where=entry.where.in_layer(entry.name), remedy=f"give the net of these weights, or {KEPT}"
    )


def _mismatch(node: Node, place: int, blob: Blob) -> WeightsError:
    """An error: a blob that Caffe would not copy for its shape."""
    want, remedy = node.blob_shapes[place], f"give the net of these weights, or {KEPT}"
    if prod(blob.shape) == prod(want):
        remedy = "the numbers would fit: write the file again with the net's shape, or transpose them if they are so"
    what = f"blob {place} is {_text(blob.shape)} in the file, the net needs {_text(want)}"
    return WeightsError(what, where=blob.where.in_layer(node.layer.name), remedy=remedy)


def _text(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a scalar"
