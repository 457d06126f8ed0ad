"""Writing .onnx: every layer's exact form, weights streamed behind the graph.

A protobuf message may come in pieces that merge, so the file is the model without weights followed by one piece
for each weight, whose bytes go straight from the source. Beyond 2 GiB, which one protobuf file cannot hold, the
weights go to a second file beside it. That file is called after its content, so that a model that is replaced never
finds another's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from caffe_compat.errors import ConversionError, VggcError, raise_all
from caffe_compat.graph import Graph, Node, Value, rebuild
from caffe_compat.tags import encode_varint
from caffe_compat.tensor_weights import NAMES
from converters.half import widen
from converters.model import EXCHANGED, Model, NamedBlob, blob_name, tool_version
from converters.onnx_pixels import Pixels, prepend
from converters.onnx_sizes import open_axes
from converters.streaming import Payloads, Target

DEFAULT_OPSET = 17
OPSETS = range(13, 24)
IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
LARGEST = 2**31 - 2**20
"""Bytes that a protobuf file may have, less what a later edit may add."""


@dataclass(frozen=True)
class Options:
    """How to export.

    Attributes:
        opset: version of the default operator set, 13 to 23.
        dynamic_batch: leave the batch size open where the net allows it.
        pixels: let the model take pixels, and prepare them so.
        open_size: leave heights and widths open too, which every layer must allow.
    """

    opset: int = DEFAULT_OPSET
    dynamic_batch: bool = True
    pixels: Pixels | None = None
    open_size: bool = False


class Writer:
    """Collects nodes and constants; what layers see as OnnxWriter."""

    def __init__(
        self,
        weights: Mapping[str, NamedBlob],
        opset: int,
        dynamic_batch: bool,
        taken: set[str],
        open_size: bool = False,
    ) -> None:
        self.opset = opset
        self.dynamic_batch = dynamic_batch
        self.open_size = open_size
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._weights = weights
        self._taken = taken
        self._layer = ""

    def op(self, op_type: str, inputs: Sequence[str], outputs: Sequence[str] | int = 1, **attributes: Any) -> list[str]:
        """Add a node; returns the names of its outputs."""
        names = [self.fresh(op_type) for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        name = self.unique(self._layer if self._layer not in self._taken else f"{self._layer}/{op_type}", "node:")
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op_type, list(inputs), names, name=name, **given))
        return names

    def constant(self, value: NDArray[Any]) -> str:
        """Add a small initializer; returns its name."""
        name = self.fresh("const")
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def array(self, blob: str) -> NDArray[Any]:
        """The values of a weight, float32."""
        item = self._weights[blob]
        return item.blob.values.reshape(item.shape).astype(np.float32, copy=False)

    def fresh(self, stem: str) -> str:
        """An unused tensor name that tells the layer."""
        return self.unique(f"{self._layer}/{stem}")

    def unique(self, name: str, space: str = "") -> str:
        """`name`, numbered when it is taken."""
        candidate, number = name, 1
        while space + candidate in self._taken:
            number += 1
            candidate = f"{name}_{number}"
        self._taken.add(space + candidate)
        return candidate

    def enter(self, layer: str) -> None:
        """The nodes that follow belong to this layer."""
        self._layer = layer


def write(model: Model, target: Target, payloads: Payloads, options: Options | None = None) -> None:
    """Write the net and its weights.

    Tensors are called as the blobs, `<layer>.<blob>` for weights; an in-place blob's earlier values get a suffix.

    Raises:
        ConversionError: a layer has no exact form in ONNX, or weights are missing; `Problems` when several.
    """
    options = options or Options()
    skeleton, used = build(model, options)
    head = skeleton.SerializeToString(deterministic=True)
    pieces = [_piece(item) for item in used]
    target.write(head)
    if len(head) + sum(map(len, pieces)) + sum(item.blob.values.nbytes for item in used) > LARGEST:
        _write_external(used, target, payloads)
        return
    for item, piece in zip(used, pieces, strict=True):
        target.write(piece)
        payloads.send(item.blob, target)


def build(model: Model, options: Options) -> tuple[onnx.ModelProto, list[NamedBlob]]:
    """The checked model without its weights, and the weights that it uses."""
    graph = _checked(model, options)
    names = tensor_names(graph)
    model = replace(_distinct(model, set(names.values())), reshaped={})
    weights = {item.name: item for item in (*model.blobs(), *_reshaped(model, graph))}
    batch = batch_values(graph) if options.dynamic_batch else frozenset()

    def write_nodes(graph: Graph) -> Writer:
        taken = set(names.values()) | set(weights)
        writer = Writer(weights, options.opset, bool(batch), taken, options.open_size)
        raise_all([error for node in graph.nodes if (error := _emit(node, model, names, writer))])
        return writer

    writer = write_nodes(graph)
    sizes = open_axes(graph, writer, write_nodes) if options.open_size else {}
    read = {name for node in writer.nodes for name in node.input}
    used = [item for item in weights.values() if item.name in read]
    skeleton = _proto(graph, writer, names, (batch, sizes), used)
    _describe(skeleton, model)
    widen(skeleton, used)
    if options.pixels is not None:
        prepend(skeleton, options.pixels)
    return skeleton, used


def _checked(model: Model, options: Options) -> Graph:
    if model.graph is None:
        what = "without a net only weights can be written"
        raise ConversionError(what, where=model.weights.source, remedy="leave out --weights-only")
    if not model.graph.outputs:
        where = model.graph.source.source
        raise ConversionError("the net has no outputs", where=where, remedy="let a layer's top be read by none")
    if options.opset not in OPSETS:
        what = f"opset {options.opset}; {OPSETS[0]} to {OPSETS[-1]} can be written"
        raise ConversionError(what, remedy=f"leave --opset out for {DEFAULT_OPSET}")
    return model.graph


def tensor_names(graph: Graph) -> dict[Value, str]:
    """A tensor name for each value: inputs and final values have the blob's name, others a suffix."""
    names: dict[Value, str] = {}
    last = {value.blob: value for value in graph.values if value.blob}
    inputs = [Value(blob) for blob in graph.inputs]
    taken: set[str] = set()
    for value in [*inputs, *last.values(), *graph.values]:
        if value in names:
            continue
        stem = value.blob or f"unnamed_{value.version}"
        name = stem if stem not in taken else f"{stem}@{value.version}"
        taken.add(name)
        names[value] = name
    return names


def _distinct(model: Model, taken: set[str]) -> Model:
    """The model with other names for weights that are called as a blob is."""
    renamed = {key: name for key in model.arrays if (name := model.name(key)) in taken}
    for key, name in renamed.items():
        while renamed[key] in taken:
            renamed[key] = name = f"{name}_"
    return replace(model, renamed={**model.renamed, **renamed})


def _emit(node: Node, model: Model, names: Mapping[Value, str], writer: Writer) -> VggcError | None:
    """Write one layer; returns why it cannot be written."""
    if node.layer.TYPE == "Input":
        return None
    writer.enter(node.layer.name)
    blobs = [_weight(model, node, index) for index in range(len(node.params))]
    tops = [names[value] for value in node.tops]
    try:
        node.layer.to_onnx(writer, [names[value] for value in node.bottoms], tops, blobs)
    except VggcError as error:
        return error
    return None


def _weight(model: Model, node: Node, index: int) -> str:
    """The initializer of a parameter blob: the owner's, or its own when it is shared with another shape."""
    key = node.params[index]
    owner = model.graph.nodes[key.node] if model.graph else node
    same = owner.blob_shapes[key.blob] == node.blob_shapes[index]
    return model.name(key) if same else f"{node.layer.name}.{blob_name(type(node.layer), index)}"


def _reshaped(model: Model, graph: Graph) -> Iterator[NamedBlob]:
    """Blobs shared with another shape (share_mode: PERMISSIVE), which one initializer cannot be."""
    for node in graph.nodes:
        for index, (key, shape) in enumerate(zip(node.params, node.blob_shapes, strict=True)):
            if graph.nodes[key.node].blob_shapes[key.blob] != shape and key in model.arrays:
                blob = replace(model.arrays[key], shape=shape)
                yield NamedBlob(node.layer.name, index, _weight(model, node, index), shape, blob)


def varying_values(graph: Graph) -> frozenset[Value]:
    """Values whose sizes depend on what is fed."""
    found: set[Value] = set()
    for node in graph.nodes:
        if node.layer.VARIES or found.intersection(node.bottoms):
            found.update(node.tops)
    return frozenset(found)


def batch_values(graph: Graph) -> frozenset[Value]:
    """Values whose first axis is the batch; empty when the net works at one batch size only.

    Found by building the net again with a larger batch: sizes that follow must be first axes.
    """
    sizes = {shape[0] for shape in graph.inputs.values() if shape}
    if len(sizes) != 1 or not all(graph.inputs.values()):
        return frozenset()
    batch = sizes.pop()
    larger = {blob: (batch + 1, *shape[1:]) for blob, shape in graph.inputs.items()}
    other = rebuild(graph.net, graph.context, larger)
    if other.problems or other.values.keys() != graph.values.keys() or other.params != graph.params:
        return frozenset()
    moved = {value for value, shape in graph.values.items() if other.values[value] != shape}
    follows = all(other.values[v] == (batch + 1, *graph.values[v][1:]) and graph.values[v][0] == batch for v in moved)
    return frozenset(moved) if follows else frozenset()


def _proto(
    graph: Graph,
    writer: Writer,
    names: Mapping[Value, str],
    open_: tuple[frozenset[Value], Mapping[Value, frozenset[int]]],
    used: list[NamedBlob],
) -> onnx.ModelProto:
    """Put the pieces together and let onnx check them, with the weights as inputs while it looks."""
    varying = varying_values(graph)
    batch, sizes = open_

    def info(value: Value) -> onnx.ValueInfoProto:
        moved = sizes.get(value, frozenset())
        shape: list[int | str | None] = [None if axis in moved else n for axis, n in enumerate(graph.values[value])]
        shape = ["N", *shape[1:]] if value in batch else shape
        shape = [None] * len(shape) if value in varying else shape
        return helper.make_tensor_value_info(names[value], TensorProto.FLOAT, shape)

    inputs = [Value(blob) for blob in graph.inputs]
    outputs = [graph.last(blob) for blob in graph.outputs]
    proto = helper.make_graph(
        writer.nodes,
        graph.name or "net",
        [info(v) for v in inputs] + [_as_input(item) for item in used],
        [info(v) for v in outputs],
        initializer=writer.constants,
        value_info=[info(v) for v in graph.values if v not in inputs and v not in outputs],
    )
    made = _model(proto, writer.opset)
    del made.graph.input[len(inputs) :]
    return made


def _model(proto: onnx.GraphProto, opset: int) -> onnx.ModelProto:
    """The checked model of a graph."""
    made = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=IR_VERSIONS[opset],
        producer_name="vggc",
        producer_version=tool_version(),
    )
    check(made)
    return made


def _as_input(item: NamedBlob) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(item.name, TensorProto.FLOAT, list(item.shape))


def _describe(made: onnx.ModelProto, model: Model) -> None:
    """Put in what a user of the file should know."""
    made.doc_string = f'The Caffe net "{made.graph.name}": tensors are called as its blobs, weights <layer>.<blob>.'
    about = model.metadata()
    kept = ("caffe_profile", "preprocessing", EXCHANGED, NAMES)
    helper.set_model_props(made, {key: about[key] for key in kept if key in about})


def check(model: onnx.ModelProto) -> None:
    """onnx's own checker with shape inference.

    Raises:
        ConversionError: it finds fault; an error of ours, worth a report.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"onnx.checker refuses the result: {error}", remedy="please report this net") from error


def _piece(item: NamedBlob) -> bytes:
    """Everything of ModelProto{graph{initializer{...}}} before the payload."""
    head = _tensor(item).SerializeToString(deterministic=True)
    head += b"\x4a" + encode_varint(item.blob.values.nbytes)  # raw_data = 9
    tensor = len(head) + item.blob.values.nbytes
    inner = b"\x2a" + encode_varint(tensor) + head  # GraphProto.initializer = 5
    return b"\x3a" + encode_varint(len(inner) + item.blob.values.nbytes) + inner  # ModelProto.graph = 7


def _tensor(item: NamedBlob) -> onnx.TensorProto:
    kind = helper.np_dtype_to_tensor_dtype(item.blob.values.dtype)
    return TensorProto(name=item.name, dims=item.shape, data_type=kind)


def _write_external(used: list[NamedBlob], target: Target, payloads: Payloads) -> None:
    """Weights to `<file>.<start of their sha256>.data`, references to the model."""
    data = target.companion()
    offsets = []
    for item in used:
        offsets.append(data.size)
        payloads.send(item.blob, data)
    data.finish()
    data.path = target.path.with_name(f"{target.path.name}.{data.sha256[:12]}.data")
    for item, offset in zip(used, offsets, strict=True):
        tensor = _tensor(item)
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": data.path.name, "offset": offset, "length": item.blob.values.nbytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        graph = onnx.GraphProto(initializer=[tensor])
        target.write(onnx.ModelProto(graph=graph).SerializeToString(deterministic=True))


def reference_weights(skeleton: onnx.ModelProto, used: Sequence[NamedBlob]) -> None:
    """Let a model that `build` gave look for its weights outside, by their names, for a runtime that is handed them."""
    for item in used:
        tensor = _tensor(item)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=item.name)
        skeleton.graph.initializer.append(tensor)
