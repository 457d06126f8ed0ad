"""Leaving the height and width of images open in an ONNX model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import onnx

from caffe_compat.errors import ConversionError, raise_all
from caffe_compat.graph import Graph, Value, rebuild

FURTHER = (37, 61)
"""How much larger the images are that a net is tried with: no multiple of a stride, and not the same both ways."""


class Written(Protocol):
    """What was written for a graph."""

    nodes: list[onnx.NodeProto]
    constants: list[onnx.TensorProto]


def open_axes(graph: Graph, written: Written, write: Callable[[Graph], Written]) -> Mapping[Value, frozenset[int]]:
    """The axes of each value whose sizes follow from those of the images.

    The net is built again for larger images. Everything that is written for it must be what is written for the
    declared size, so it cannot depend on the size.

    Args:
        written: what `write` gives for `graph`.

    Raises:
        ConversionError: a layer has no form that holds for every size, or the net takes no larger images.
    """
    images = {blob: shape for blob, shape in graph.inputs.items() if len(shape) == 4}
    larger = {blob: (n, c, h + FURTHER[0], w + FURTHER[1]) for blob, (n, c, h, w) in images.items()}
    other = rebuild(graph.net, graph.context, {**graph.inputs, **larger})
    raise_all(other.problems)
    if not images or other.values.keys() != graph.values.keys() or other.params != graph.params:
        raise ConversionError("this net takes images of one size only", where=graph.source.source)
    fixed = _differing(written, write(other))
    if fixed:
        what = f"what is written for {', '.join(fixed)} holds for one size of images only"
        raise ConversionError(what, where=graph.source.source, remedy="run this net in PyTorch")
    return {value: _moved(shape, other.values[value]) for value, shape in graph.values.items()}


def _moved(shape: tuple[int, ...], other: tuple[int, ...]) -> frozenset[int]:
    return frozenset(axis for axis, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b)


def _differing(one: Written, other: Written) -> list[str]:
    """Names of nodes, or else of constants, that are not the same in both."""
    for mine, theirs in ((one.nodes, other.nodes), (one.constants, other.constants)):
        known = {each.name: each for each in theirs}
        differing = [each.name for each in mine if known.pop(each.name, None) != each]
        if differing or known:
            return [*differing, *known]
    return []
