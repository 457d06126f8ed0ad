"""The layer in CONTRIBUTING.md works as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from google.protobuf import text_format

from caffe_compat.errors import LayerError
from caffe_compat.graph import Graph, ParamKey
from caffe_compat.layers import base
from caffe_compat.module import Net
from caffe_compat.schema import pb
from caffe_compat.weights import Blob, Weights
from converters import onnx as onnx_format
from converters.model import Model
from converters.streaming import Payloads, Target
from tests.shared import ROOT

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }
layer { name: "gain" type: "ChannelGain" bottom: "data" top: "data" }
"""
GAIN = np.array([2, -1, 0.5], np.float32)
DATA = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
WANTED = DATA * GAIN.reshape(3, 1, 1)


@pytest.fixture(autouse=True)
def layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the layer for one test."""
    base.load_all()
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    module = ModuleType("channel_gain")
    monkeypatch.setitem(sys.modules, "channel_gain", module)
    exec(compile(code('"""ChannelGain'), "CONTRIBUTING.md", "exec"), module.__dict__)


def code(beginning: str) -> str:
    """The Python block that begins so."""
    blocks: list[str] = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    (found,) = [block for block in blocks if block.startswith(beginning)]
    return found


def graph(text: str = NET) -> Graph:
    return Graph.from_net(text_format.Parse(text, pb.NetParameter()))


def test_runs() -> None:
    built = graph()
    assert built.params == {"gain": ((3,),)}
    assert torch.equal(Net(built)({"data": torch.from_numpy(DATA)})["data"], torch.from_numpy(DATA))
    net = Net(built, {ParamKey(1, 0): GAIN})
    np.testing.assert_array_equal(net({"data": torch.from_numpy(DATA)})["data"].detach().numpy(), WANTED)


def test_its_test_passes() -> None:
    names: dict[str, Any] = {"np": np}
    exec(code("from tests.caffe_compat.layers.harness"), names)
    names["test_each_channel_has_a_gain"]()


def test_refuses_what_it_says() -> None:
    with pytest.raises(LayerError, match=r'layer "gain": the bottom has 1 axes.*; give it a blob with channels'):
        graph(NET.replace("dim: 3 dim: 4 dim: 5", ""))


def test_goes_to_onnx(tmp_path: Path) -> None:
    model = Model(graph(), {ParamKey(1, 0): Blob((3,), GAIN)}, Weights(()))
    path = tmp_path / "gain.onnx"
    with Target(path) as target:
        onnx_format.write(model, target, Payloads())
        target.rename()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: DATA})
    np.testing.assert_array_equal(output, WANTED)
