"""What Net::Init of December 2013 makes of a net: shapes, multipliers, outputs, and what needs a backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from caffe_compat.graph import Graph
from caffe_compat.module import Net
from tests.parity.cases import Case, Folders, dec2013_cases, read_json
from tests.parity.compare import comparing
from tests.parity.dec2013 import load_recorded_2013
from tests.parity.nets import Recorder, tensor


def cases(folders: Folders) -> list[Case]:
    return dec2013_cases(folders, "graph")


def test_2013_graph(case: Case) -> None:
    expected = read_json(case.path("expected.json"))
    net, recorder = load_recorded_2013(case)
    graph = net.graph
    with comparing() as compare:
        compare.equal("outputs", list(graph.outputs), expected["outputs"])
        shapes = [(name, list(shape)) for name, shape in graph.shapes.items()]
        compare.equal("blobs", shapes, [(blob["name"], blob["shape"]) for blob in expected["blobs"]])
        compare.equal("layers", layers(graph), [(layer["name"], params(layer)) for layer in expected["layers"]])
        blobs, active = need_backward(net, recorder)
        compare.equal("blobs that need backward", blobs, names(expected["blobs"]))
        compare.equal("layers that need backward", active, names(expected["layers"]))


def layers(graph: Graph) -> list[tuple[str, list[Any]]]:
    """Layers after the inputs, with shape, lr_mult and decay_mult of each parameter blob."""
    return [
        (n.layer.name, [(list(s), p.lr_mult, p.decay_mult) for s, p in zip(n.blob_shapes, n.specs, strict=True)])
        for n in graph.nodes
        if n.layer.TYPE != "Input"
    ]


def params(layer: dict[str, Any]) -> list[Any]:
    return [(param["shape"], param["lr_mult"], param["decay_mult"]) for param in layer["params"]]


def names(items: list[dict[str, Any]]) -> list[str]:
    return [item["name"] for item in items if item["need_backward"]]


def need_backward(net: Net, recorder: Recorder) -> tuple[list[str], list[str]]:
    """Blobs and layers that autograd would run through; with force_backward the inputs count too."""
    force = net.graph.net.force_backward
    inputs = {blob: tensor(np.zeros(shape)).requires_grad_(force) for blob, shape in net.inputs.items()}
    trace = net.trace(inputs)
    blobs = [blob for blob in net.graph.shapes if trace.blobs[blob].requires_grad]
    tensors = {name: [*call.bottoms, *net.params.get(name, ())] for name, call in recorder.calls.items()}
    active = [name for name, used in tensors.items() if any(t.requires_grad for t in used)]
    return blobs, active
