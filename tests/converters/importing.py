"""ONNX models written as text, ONNX Runtime's answer, and that of the Caffe net made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from caffe_compat.binding import bind
from caffe_compat.graph import Graph
from caffe_compat.module import Net
from converters.from_onnx import from_onnx
from converters.importing.options import ImportOptions
from converters.importing.translation import Imported
from tests.tolerances import ENGINES

Array = NDArray[Any]


def model(
    inputs: str, body: str, outputs: str = "y", opset: int = 17, weights: Mapping[str, Array] | None = None
) -> onnx.ModelProto:
    """A model: `x: float[1, 3, 8, 8]`, lines like `y = Relu(x)`; weights become initializers."""
    kinds = [each.split() if " " in each.strip() else ("float", each.strip()) for each in outputs.split(",")]
    typed = ", ".join(f"{kind}[] {name}" for kind, name in kinds)
    declared = ", ".join(f"{kind} {name}" for name, kind in (each.split(":") for each in inputs.split(";")))
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> net ({declared}) => ({typed}) {{ {body} }}'
    made = onnx.parser.parse_model(text)
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items())
    for output in made.graph.output:
        output.type.tensor_type.ClearField("shape")
    return made


def feeds(made: onnx.ModelProto, seed: int = 0, batch: int = 1) -> dict[str, Array]:
    """Random inputs."""
    rng = np.random.default_rng(seed)
    given = {tensor.name for tensor in made.graph.initializer}
    arrays: dict[str, Array] = {}
    for info in made.graph.input:
        if info.name in given:
            continue
        shape = [dim.dim_value or batch for dim in info.type.tensor_type.shape.dim]
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            arrays[info.name] = rng.normal(0, 1, shape).astype(np.float32)
        else:
            arrays[info.name] = rng.integers(0, 4, shape)
    return arrays


def in_ort(made: onnx.ModelProto, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """ONNX Runtime's outputs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(arrays)), strict=True))


def in_caffe(imported: Imported, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of the net that was made."""
    graph = Graph.from_net(imported.net)
    bound = bind(graph, imported.weights)
    net = Net(graph, {key: blob.values for key, blob in bound.arrays.items()})
    used = {
        name: torch.from_numpy(np.asarray(array, np.float32)) for name, array in arrays.items() if name in graph.inputs
    }
    with torch.no_grad():
        tops = net(used)
    return {name: top.detach().numpy() for name, top in tops.items()}


def types(imported: Imported) -> list[str]:
    """Layer types but for Input."""
    return [layer.type for layer in imported.net.layer if layer.type != "Input"]


def same(made: onnx.ModelProto, options: ImportOptions | None = None, batch: int = 1, seed: int = 0) -> Imported:
    """The Caffe net of a model, after seeing that it gives what ONNX Runtime gives."""
    imported = from_onnx(made, options)
    arrays = feeds(made, seed, batch)
    want, got = in_ort(made, arrays), in_caffe(imported, arrays)
    assert got.keys() == want.keys()
    for name, values in want.items():
        assert got[name].shape == values.shape, name
        assert ENGINES.ratio(got[name], values) <= 1, (name, float(np.abs(got[name] - values).max()))
    return imported
