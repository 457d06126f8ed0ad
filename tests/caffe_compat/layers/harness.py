"""What the tests of single layers share: a layer in a net of its own, run, differentiated and written to ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf import text_format
from numpy.typing import NDArray
from onnx import numpy_helper
from torch.autograd import gradcheck

from caffe_compat.graph import Graph, Node, ParamKey
from caffe_compat.layers.base import Context, Layer, Shape
from caffe_compat.schema import pb
from caffe_compat.upgrade import upgrade_net
from caffe_compat.weights import Blob, Weights
from converters.model import Model
from converters.onnx import Options, build

Array = NDArray[np.float64]
NAME = "it"


@dataclass(frozen=True)
class Lone:
    """A layer whose bottoms are the inputs of its net."""

    graph: Graph

    @property
    def node(self) -> Node:
        return self.graph.layer(NAME)

    @property
    def layer(self) -> Layer:
        return self.node.layer

    @property
    def top_shapes(self) -> list[Shape]:
        return [self.graph.values[top] for top in self.node.tops]

    def blobs(self, seed: int = 1) -> list[Array]:
        """Random values for the parameter blobs."""
        generator = np.random.default_rng(seed)
        return [generator.uniform(0.5, 1.5, shape) for shape in self.node.blob_shapes]


def lone(
    text: str,
    *shapes: Shape,
    tops: int = 1,
    inplace: bool = False,
    phase: str = "TEST",
    profile: str = "bvlc",
    dialect: str = "",
    folder: str = ".",
    python_layers: str | None = None,
) -> Lone:
    """A net of Input layers in0, in1, ... and the layer whose prototxt fields are `text`, with tops out0, out1, ...

    Args:
        inplace: the first top is in0.
        phase, profile, dialect, folder: of the graph.
        python_layers: the folder of pycaffe's layers.
    """
    names = [f"in{index}" for index in range(len(shapes))]
    outs = ["in0" if inplace and not index else f"out{index}" for index in range(tops)]
    fields = [f'bottom: "{name}"' for name in names] + [f'top: "{out}"' for out in outs]
    inputs = [_input(name, shape) for name, shape in zip(names, shapes, strict=True)]
    net = pb.NetParameter()
    text_format.Parse("\n".join(inputs) + f'\nlayer {{ name: "{NAME}" {text} {" ".join(fields)} }}', net)
    context = Context(phase, profile, dialect, folder, state={"python_layers": python_layers})
    return Lone(Graph.from_upgraded(upgrade_net(net), context))


def _input(name: str, shape: Shape) -> str:
    dims = " ".join(f"dim: {dim}" for dim in shape)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}'


def arrays(*shapes: Shape, seed: int = 0, low: float = -2.0, high: float = 2.0) -> list[Array]:
    """Random arrays of those shapes."""
    generator = np.random.default_rng(seed)
    return [generator.uniform(low, high, shape) for shape in shapes]


def forward(it: Lone, bottoms: Sequence[Array], blobs: Sequence[Array] = (), dtype: type = np.float64) -> list[Array]:
    """The tops; gradients are not recorded."""
    with torch.no_grad():
        tops = it.layer.forward(_tensors(bottoms, dtype), _tensors(blobs, dtype))
    return [top.numpy() for top in tops]


def gradients(
    it: Lone, bottoms: Sequence[Array], top_diffs: Sequence[Array], blobs: Sequence[Array] = ()
) -> tuple[list[Array], list[Array]]:
    """Gradients of bottoms and of blobs, zero where none flows."""
    inputs = [tensor.requires_grad_() for tensor in _tensors(bottoms)]
    weights = [tensor.requires_grad_() for tensor in _tensors(blobs)]
    tops = zip(it.layer.forward(inputs, weights), _tensors(top_diffs), strict=True)
    outs, diffs = zip(*((top, diff) for top, diff in tops if top.requires_grad), strict=True)
    grads = torch.autograd.grad(outs, inputs + weights, diffs, allow_unused=True, materialize_grads=True)
    values = [grad.numpy() for grad in grads]
    return values[: len(inputs)], values[len(inputs) :]


def check_gradients(it: Lone, bottoms: Sequence[Array], blobs: Sequence[Array] = (), learned: bool = True) -> None:
    """Analytic gradients of bottoms, and of blobs if they are learned, equal finite differences in float64."""
    wanted = [it.layer.propagates(index) for index in range(len(bottoms))] + [learned] * len(blobs)
    inputs = [tensor.requires_grad_(want) for tensor, want in zip(_tensors([*bottoms, *blobs]), wanted, strict=True)]
    count = len(bottoms)

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(it.layer.forward(list(tensors[:count]), list(tensors[count:])))

    assert gradcheck(run, inputs)


def _tensors(values: Sequence[Array], dtype: type = np.float64) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(value, dtype)) for value in values]


def export(it: Lone, blobs: Sequence[Array] = (), opset: int = 17) -> onnx.ModelProto:
    """The net with its weights, in ONNX."""
    position = it.graph.nodes.index(it.node)
    held = [np.array(blob, np.float32) for blob in blobs]
    given = {ParamKey(position, index): Blob(blob.shape, blob.ravel()) for index, blob in enumerate(held)}
    skeleton, used = build(Model(it.graph, given, Weights(())), Options(opset))
    for item in used:
        skeleton.graph.initializer.append(numpy_helper.from_array(item.blob.values.reshape(item.shape), item.name))
    return skeleton


def session(it: Lone, blobs: Sequence[Array] = (), opset: int = 17) -> onnxruntime.InferenceSession:
    """The exported net in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    model = export(it, blobs, opset).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def has_dynamic_batch(exported: onnxruntime.InferenceSession) -> bool:
    return any("N" in entry.shape for entry in exported.get_inputs())


def run_onnx(exported: onnxruntime.InferenceSession, bottoms: Sequence[Array]) -> list[Array]:
    """The net's outputs, sorted by name, in float32."""
    names = {entry.name for entry in exported.get_inputs()}
    feeds = {f"in{index}": bottom.astype(np.float32) for index, bottom in enumerate(bottoms)}
    values: list[Array] = exported.run(None, {name: feed for name, feed in feeds.items() if name in names})
    return values
