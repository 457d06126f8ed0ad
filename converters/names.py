"""Other libraries' names for the parameters of a VGG net."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from caffe_compat.errors import ConversionError
from caffe_compat.graph import Graph, Node
from converters.model import Model

SCHEMES = ("caffe", "torchvision")

_FEATURES = ("Convolution", "ReLU", "Pooling")
_CLASSIFIER = ("InnerProduct", "ReLU", "Dropout")
_IGNORED = ("Input", "Softmax")


def rename(model: Model, scheme: str) -> Model:
    """The model with the scheme's names for weights.

    "torchvision": `features.<n>` and `classifier.<n>`, counted as in its Sequential modules; Caffe's channel order
    stays, which a note says.

    Raises:
        ConversionError: the net is not a plain VGG, or the scheme is not known.
    """
    if scheme == "caffe":
        return model
    if scheme not in SCHEMES:
        raise ConversionError(f'no naming scheme "{scheme}"', remedy=f"use one of {', '.join(SCHEMES)}")
    if model.graph is None:
        raise ConversionError("torchvision names need a net that can be built")
    names = dict(_torchvision(model.graph))
    note = "torchvision names: the first convolution still takes BGR and raw pixel means, not torchvision's RGB"
    return replace(model, renamed=names, notes=(*model.notes, note))


def _torchvision(graph: Graph) -> Iterator[tuple[str, str]]:
    part, position = "features", 0
    for node in graph.nodes:
        kind = node.layer.TYPE
        if kind in _IGNORED:
            continue
        if part == "features" and kind == "InnerProduct":
            part, position = "classifier", 0
        _check_place(node, part, position)
        if kind in ("Convolution", "InnerProduct"):
            for blob in ("weight", "bias"):
                yield f"{node.layer.name}.{blob}", f"{part}.{position}.{blob}"
        position += 1


def _check_place(node: Node, part: str, position: int) -> None:
    """Every layer stands where torchvision's VGG has one of its kind."""
    kind = node.layer.TYPE
    expected = _FEATURES if part == "features" else (_CLASSIFIER[position % 3],)
    if kind not in expected or len(node.bottoms) != 1:
        raise ConversionError(
            f"{kind} is not where torchvision's VGG has one",
            where=node.layer.where(),
            remedy="use --names caffe; torchvision names exist for the VGG nets A, B, D and E",
        )
