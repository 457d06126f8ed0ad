"""BatchNorm and Scale put into the weights of the Convolution or InnerProduct before them: what `--fold-bn` does.

In real arithmetic the net stays the same. The result is again a Caffe net, with fewer layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import ConversionError, raise_all
from caffe_compat.graph import Graph, Node, ParamKey, Value, rebuild
from caffe_compat.layers.convolution import Convolution
from caffe_compat.layers.inner_product import InnerProduct
from caffe_compat.schema import pb
from caffe_compat.upgrade import copy_fields
from caffe_compat.weights import Blob
from converters.model import Model

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class _Chain:
    """A layer with weights and what follows it: y = factor (W x + b) + shift for each output."""

    start: int
    folded: tuple[int, ...]
    factor: Vector
    shift: Vector


def folded(model: Model) -> Model:
    """The model without the BatchNorm and Scale layers that go into the layer before them.

    A layer is folded when the one before it has all its blobs to itself, its top no other reader, and its statistics
    are fixed.

    Raises:
        ConversionError: there is no net, or weights have other names than Caffe's.
    """
    if model.graph is None or model.renamed:
        raise ConversionError("folding needs a net with Caffe's names", remedy="leave --fold-bn or --names out")
    graph = model.graph
    chains = _chains(model, graph)
    gone = {position for chain in chains for position in chain.folded}
    note = f"folded {len(gone)} BatchNorm and Scale layer(s) into the weights before them"
    left = [
        node.layer.name
        for position, node in enumerate(graph.nodes)
        if node.layer.TYPE in ("BatchNorm", "Scale") and node.params and position not in gone
    ]
    notes = [note, *([f"not folded: {', '.join(left)}"] if left else [])]
    made = _rebuilt(graph, chains)
    return replace(model, graph=made, arrays=_arrays(model, graph, chains), notes=(*model.notes, *notes))


# -- finding ---------------------------------------------------------------------------------------------------


def _chains(model: Model, graph: Graph) -> list[_Chain]:
    readers = Counter(value for node in graph.nodes for value in node.bottoms)
    users = Counter(key for node in graph.nodes for key in node.params)
    reader = {value: position for position, node in enumerate(graph.nodes) for value in node.bottoms}
    found = []
    for position, node in enumerate(graph.nodes):
        own = all(key in model.arrays and users[key] == 1 for key in node.params)
        if own and _is_start(node):
            chain = _follow(model, graph, position, readers, reader)
            found += [chain] if chain.folded else []
    return found


def _is_start(node: Node) -> bool:
    layer = node.layer
    if isinstance(layer, Convolution):
        return layer.geometry.axis == 1 and len(node.tops) == 1
    return isinstance(layer, InnerProduct) and len(layer.bottom_shapes[0]) > 1 and layer.p.axis == 1


def _follow(
    model: Model, graph: Graph, start: int, readers: Mapping[Value, int], reader: Mapping[Value, int]
) -> _Chain:
    """The longest chain from a layer."""
    value = graph.nodes[start].tops[0]
    outputs = graph.values[value][1]
    chain = _Chain(start, (), np.ones(outputs), np.zeros(outputs))
    while readers[value] == 1:
        position = reader[value]
        node = graph.nodes[position]
        step = _affine(model, node, outputs)
        if step is None:
            break
        factor, shift = step
        chain = _Chain(start, (*chain.folded, position), chain.factor * factor, chain.shift * factor + shift)
        value = node.tops[0]
    return chain


def _affine(model: Model, node: Node, channels: int) -> tuple[Vector, Vector] | None:
    """Factor and shift that a layer applies to each channel; None when it does something else."""
    if len(node.bottoms) != 1 or not all(key in model.arrays for key in node.params):
        return None
    layer: Any = node.layer
    blobs = [model.arrays[key].values.astype(np.float64) for key in node.params]
    if layer.TYPE == "BatchNorm" and layer.use_global_stats:
        mean, variance, weight = blobs
        share = 1 / weight[0] if weight[0] else 0.0
        factor = 1 / np.sqrt(variance * share + layer.eps)
        return factor, -mean * share * factor
    if layer.TYPE == "Scale" and layer.operand == (channels,) and len(layer.bottom_shapes[0]) - layer.after == 2:
        return blobs[0], blobs[1] if len(blobs) > 1 else np.zeros(channels)
    return None


# -- the net without them --------------------------------------------------------------------------------------


def _rebuilt(graph: Graph, chains: list[_Chain]) -> Graph:
    """The net again: layers folded are left out, the one before writes what they wrote."""
    gone = {position for chain in chains for position in chain.folded}
    ends = {chain.start: graph.nodes[chain.folded[-1]].layer.param.top[0] for chain in chains}
    net = pb.NetParameter(name=graph.net.name, force_backward=graph.net.force_backward)
    for position, node in enumerate(graph.nodes):
        if position in gone:
            continue
        layer = net.layer.add()
        copy_fields(node.layer.param, layer, leave={"blobs", "include", "exclude"})
        if position in ends:
            layer.top[0] = ends[position]
            field = "convolution_param" if layer.HasField("convolution_param") else "inner_product_param"
            getattr(layer, field).bias_term = True
    made = rebuild(net, graph.context, graph.inputs)
    raise_all(made.problems)
    return replace(made, notes=graph.notes)


def _arrays(model: Model, graph: Graph, chains: list[_Chain]) -> dict[ParamKey, Blob]:
    """The blobs under their new places, with the folded layers in them."""
    gone = {position for chain in chains for position in chain.folded}
    kept = [position for position in range(len(graph.nodes)) if position not in gone]
    places = {old: new for new, old in enumerate(kept)}
    arrays = {_moved(key, places): blob for key, blob in model.arrays.items() if key.node in places}
    for chain in chains:
        weight, bias = _combined(model, graph.nodes[chain.start], chain)
        start = places[chain.start]
        arrays |= {ParamKey(start, 0): weight, ParamKey(start, 1): bias}
    return arrays


def _moved(key: ParamKey, places: Mapping[int, int]) -> ParamKey:
    """The key of the same blob when nodes have moved."""
    return ParamKey(places[key.node], key.blob)


def _combined(model: Model, node: Node, chain: _Chain) -> tuple[Blob, Blob]:
    """Weight and bias of a chain, computed in float64."""
    weight = model.arrays[node.params[0]]
    values = weight.values.reshape(node.blob_shapes[0]).astype(np.float64)
    outputs = len(chain.factor)
    across = (1, outputs) if getattr(node.layer, "_transpose", False) else (outputs, *[1] * (values.ndim - 1))
    bias = model.arrays[node.params[1]].values.astype(np.float64) if len(node.params) > 1 else np.zeros(outputs)
    return (
        _blob(values * chain.factor.reshape(across)),
        _blob(bias * chain.factor + chain.shift),
    )


def _blob(values: NDArray[np.float64]) -> Blob:
    return Blob(values.shape, values.astype(np.float32).ravel())
