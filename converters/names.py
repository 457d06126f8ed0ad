"""Other libraries' names for the parameters of a VGG net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from caffe_compat.errors import ConversionError
from caffe_compat.graph import Graph, Node, ParamKey
from caffe_compat.layers.convolution import Geometry, read_geometry
from converters.model import Model

SCHEMES = ("caffe", "torchvision")

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
"""torchvision's model -> convolutions in each block: the configurations A, B, D and E."""
HIDDEN = 4096
_PASSED = ("Input", "Dropout", "Softmax")
"""Layers without weights that may be missing, or stand elsewhere, without a change for the others."""

Kind = tuple[str, tuple[int, ...]]
"""A layer as far as it matters here: its type, and its weights' shape but for the number of classes."""


def rename(model: Model, scheme: str) -> Model:
    """The model with the scheme's names for weights.

    "torchvision": `features.<n>` and `classifier.<n>`, so that torchvision's VGG of the same configuration takes the
    weights; Caffe's channel order stays, which a note says.

    Raises:
        ConversionError: the net is none of the configurations A, B, D and E, or the scheme is not known.
    """
    if scheme == "caffe":
        return model
    if scheme not in SCHEMES:
        raise ConversionError(f'no naming scheme "{scheme}"', remedy=f"use one of {', '.join(SCHEMES)}")
    if model.graph is None:
        raise ConversionError("torchvision names need a net that can be built", remedy="leave out --weights-only")
    names = dict(_torchvision(model.graph))
    note = "torchvision names: the first convolution still takes BGR and raw pixel means, not torchvision's RGB"
    return replace(model, renamed=names, notes=(*model.notes, note))


def _torchvision(graph: Graph) -> Iterator[tuple[ParamKey, str]]:
    """Owner of each parameter blob and its name, counted as in torchvision's two Sequential modules."""
    chain = [(index, node) for index, node in enumerate(graph.nodes) if node.layer.TYPE not in _PASSED]
    _check(graph, [node for _, node in chain])
    features = classifier = 0
    for index, node in chain:
        dense = node.layer.TYPE == "InnerProduct"
        name = f"classifier.{classifier}" if dense else f"features.{features}"
        for blob in range(len(node.params)):
            yield ParamKey(index, blob), f"{name}.{node.layer.BLOBS[blob]}"
        features += not classifier and not dense
        classifier += 3 * dense  # InnerProduct, ReLU, Dropout


def _check(graph: Graph, chain: list[Node]) -> None:
    """Refuse a net that torchvision's models would not compute."""
    own = all(key.node == index for index, node in enumerate(graph.nodes) for key in node.params)
    straight = own and all(len(node.bottoms) <= 1 for node in graph.nodes) and len(graph.outputs) == 1
    found = [_kind(node) for node in chain]
    found[-1:] = [(kind, shape[1:]) for kind, shape in found[-1:]]  # any number of classes
    known = [_layers(depths) for depths in DEPTHS.values()]
    if straight and found in known:
        return
    length = max(_agreement(found, each) for each in known) if straight else 0
    node = chain[min(length, len(chain) - 1)] if chain else graph.nodes[0]
    raise ConversionError(
        f"with this {node.layer.TYPE} layer the net departs from all of torchvision's VGG nets",
        where=node.layer.where(),
        remedy="use --names caffe; torchvision names exist for the configurations A, B, D and E",
    )


def _agreement(one: Sequence[Kind], other: Sequence[Kind]) -> int:
    """How many layers from the front are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _layers(depths: Sequence[int]) -> list[Kind]:
    """The layers of one of torchvision's models."""
    made: list[Kind] = []
    channels = 3
    for width, depth in zip(WIDTHS, depths, strict=True):
        for _ in range(depth):
            made += [("Convolution", (width, channels, 3, 3)), ("ReLU", ())]
            channels = width
        made.append(("Pooling", ()))
    dense: list[Kind] = [("InnerProduct", (HIDDEN, 49 * channels)), ("ReLU", ()), ("InnerProduct", (HIDDEN, HIDDEN))]
    return [*made, *dense, ("ReLU", ()), ("InnerProduct", (HIDDEN,))]


def _kind(node: Node) -> Kind:
    """What a layer is; details that torchvision's layer does not have make it another kind."""
    layer, kind = node.layer, node.layer.TYPE
    if kind == "Convolution":
        plain = read_geometry(layer, layer.bottom_shapes[0]) == Geometry(1, (3, 3), (1, 1), (1, 1), (1, 1))
        plain = plain and layer.p.bias_term
    elif kind == "Pooling":
        n, c, h, w = layer.bottom_shapes[0]
        halved = layer.top_shapes_built == [(n, c, h // 2, w // 2)]
        plain = halved and layer.p.pool == layer.p.MAX and layer.p.kernel_size == 2
    elif kind == "InnerProduct":
        plain = layer.p.bias_term and layer.p.axis == 1 and not layer.p.transpose
    else:
        plain = kind != "ReLU" or not layer.p.negative_slope
    return kind if plain else f"other {kind}", node.blob_shapes[0] if node.blob_shapes else ()
