"""Other libraries' names for the parameters of a net: torchvision's and timm's VGG, or any table of the user's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import NamedTuple

from caffe_compat.errors import ConversionError
from caffe_compat.graph import Graph, Node, ParamKey
from caffe_compat.layers.base import Shape
from caffe_compat.layers.convolution import Geometry, read_geometry
from converters.model import Model, own_name

SCHEMES = ("caffe", "torchvision", "timm")

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
"""torchvision's and timm's model -> convolutions in each block: the configurations A, B, D and E."""
HIDDEN = 4096
SIDE = 7
"""Height and width of the last pooling's top."""
DENSE = {
    "torchvision": ("classifier.0", "classifier.3", "classifier.6"),
    "timm": ("pre_logits.fc1", "pre_logits.fc2", "head.fc"),
}
"""The three InnerProduct layers; timm's first two are convolutions, over all of the last pooling's top and 1 x 1."""
PIXELS = (
    "{scheme}'s own weights take RGB, (pixel / 255 - mean) / std with mean 0.485, 0.456, 0.406 and std 0.229, 0.224, "
    "0.225"
)
_PASSED = ("Input", "Dropout", "Softmax")
"""Layers without weights that may be missing, or stand elsewhere, without a change for the others."""

Kind = tuple[str, tuple[int, ...]]
"""A layer as far as it matters here: its type, and its weights' shape but for the number of classes."""


class Renamed(NamedTuple):
    """A parameter blob as another library has it."""

    name: str
    shape: Shape


Names = Mapping[ParamKey, Renamed]
"""Owner of a parameter blob -> what it is called elsewhere."""


def rename(model: Model, scheme: str, table: Mapping[str, str] | None = None) -> Model:
    """The model with other names for weights; the values stay, which a note says of a scheme's.

    Raises:
        ConversionError: see `names_of`; or there is no net.
    """
    if scheme == "caffe" and not table:
        return model
    if model.graph is None:
        what = f"{scheme} names need" if scheme != "caffe" else "--rename needs"
        raise ConversionError(f"{what} a net that can be built", remedy="leave out --weights-only")
    names = names_of(model.graph, scheme, table)
    reshaped = {key: made.shape for key, made in names.items()}
    notes = (f"{scheme} names: {_input(model)}; {PIXELS.format(scheme=scheme)}",) if scheme != "caffe" else ()
    renamed = {key: made.name for key, made in names.items()}
    return replace(model, renamed=renamed, reshaped=reshaped, notes=(*model.notes, *notes))


def _input(model: Model) -> str:
    """What the first convolution takes, in words."""
    if model.exchanged:
        return "the first convolution takes RGB now, pixels from 0 to 255 less their mean"
    return "the first convolution still takes BGR, pixels from 0 to 255 less their mean (--rgb exchanges the channels)"


def names_of(graph: Graph, scheme: str, table: Mapping[str, str] | None = None) -> Names:
    """What each parameter blob is called elsewhere.

    Args:
        graph: the net.
        scheme: "torchvision" (`features.<n>`, `classifier.<n>`) or "timm" (`features.<n>`, `pre_logits.fc<n>`,
            `head.fc`) for VGG nets; "caffe" leaves all to the table.
        table: layer, or `<layer>.<blob>`, -> the name in its place; a blob's comes before its layer's.

    Raises:
        ConversionError: the net is none of the configurations A, B, D and E, the scheme is not known, or the table
            names what the net does not have or gives a name twice.
    """
    if scheme not in SCHEMES:
        raise ConversionError(f'no naming scheme "{scheme}"', remedy=f"use one of {', '.join(SCHEMES)}")
    if scheme != "caffe" and table:
        raise ConversionError(f"--rename and --names {scheme} do not go together", remedy="leave one out")
    return _tabled(graph, table or {}) if scheme == "caffe" else dict(_vgg(graph, scheme))


# -- tables of the user's --------------------------------------------------------------------------------------


def _tabled(graph: Graph, table: Mapping[str, str]) -> Names:
    names: dict[ParamKey, Renamed] = {}
    used: set[str] = set()
    for position, node in enumerate(graph.nodes):
        for index, (key, shape) in enumerate(zip(node.params, node.blob_shapes, strict=True)):
            if key != ParamKey(position, index):
                continue
            own, layer = own_name(graph, key), node.layer.name
            used |= {layer, own} & table.keys()
            whole = f"{table.get(layer, layer)}{own[len(layer) :]}"
            names[key] = Renamed(table.get(own, whole), shape)
    if unknown := [name for name in table if name not in used]:
        what = f"the net has no parameters called {', '.join(unknown)}"
        raise ConversionError(what, remedy="name layers, or blobs as in conv1.weight; `vggc inspect` lists them")
    seen: set[str] = set()
    for made in names.values():
        if made.name in seen:
            raise ConversionError(f"two parameter blobs would be called {made.name}", remedy="give each its own name")
        seen.add(made.name)
    return names


# -- VGG -------------------------------------------------------------------------------------------------------


def _vgg(graph: Graph, scheme: str) -> Iterator[tuple[ParamKey, Renamed]]:
    """Owner of each parameter blob and its name; `features` is counted as in the libraries' Sequential modules."""
    chain = [(index, node) for index, node in enumerate(graph.nodes) if node.layer.TYPE not in _PASSED]
    _check(graph, scheme, [node for _, node in chain])
    features, dense = 0, iter(DENSE[scheme])
    for index, node in chain:
        flat = node.layer.TYPE == "InnerProduct"
        name = next(dense) if flat else f"features.{features}"
        for blob, shape in enumerate(node.blob_shapes):
            yield ParamKey(index, blob), Renamed(f"{name}.{node.layer.BLOBS[blob]}", _shape(name, shape))
        features += not flat


def _shape(name: str, shape: Shape) -> Shape:
    """The shape of a blob in the library."""
    if not name.startswith("pre_logits") or len(shape) != 2:
        return shape
    side = SIDE if name.endswith("fc1") else 1
    return shape[0], shape[1] // side**2, side, side


def _check(graph: Graph, scheme: str, chain: list[Node]) -> None:
    """Refuse a net that the library's models would not compute."""
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
        f"with this {node.layer.TYPE} layer the net departs from all of {scheme}'s VGG nets",
        where=node.layer.where(),
        remedy=f"use --names caffe, or --rename; {scheme} names exist for the configurations A, B, D and E",
    )


def _agreement(one: Sequence[Kind], other: Sequence[Kind]) -> int:
    """How many layers from the front are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _layers(depths: Sequence[int]) -> list[Kind]:
    """The layers of one of the models."""
    made: list[Kind] = []
    channels = 3
    for width, depth in zip(WIDTHS, depths, strict=True):
        for _ in range(depth):
            made += [("Convolution", (width, channels, 3, 3)), ("ReLU", ())]
            channels = width
        made.append(("Pooling", ()))
    inputs = SIDE**2 * channels
    dense: list[Kind] = [("InnerProduct", (HIDDEN, inputs)), ("ReLU", ()), ("InnerProduct", (HIDDEN, HIDDEN))]
    return [*made, *dense, ("ReLU", ()), ("InnerProduct", (HIDDEN,))]


def _kind(node: Node) -> Kind:
    """What a layer is; details that the libraries' layer does not have make it another kind."""
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
