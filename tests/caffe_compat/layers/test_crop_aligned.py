"""Crop of the fork that finds its offsets itself: those of FCN-8s, other ways, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_compat.errors import VggcError
from caffe_compat.graph import Graph
from caffe_compat.layers.crop_aligned import CropAligned
from caffe_compat.reading import parse_net
from tests.caffe_compat.layers.harness import Lone, arrays, check_gradients, forward, run_onnx, session


def layer(kind: str, name: str, *bottoms: str, more: str = "") -> str:
    fields = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
    return f'layer {{ name: "{name}" type: "{kind}" {fields} top: "{name}" {more} }}\n'


def conv(name: str, bottom: str, kernel: int, *, pad: int = 0, stride: int = 1, kind: str = "Convolution") -> str:
    more = f"convolution_param {{ num_output: 1 kernel_size: {kernel} pad: {pad} stride: {stride} }}"
    return layer(kind, name, bottom, more=more)


def pool(name: str, bottom: str) -> str:
    return layer("Pooling", name, bottom, more="pooling_param { kernel_size: 2 stride: 2 }")


def data(*shape: int, name: str = "data") -> str:
    dims = " ".join(f"dim: {size}" for size in shape)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}\n'


def built(net: str) -> Graph:
    return Graph.from_net(parse_net(net), dialect="crfasrnn")


def offsets(graph: Graph, name: str = "crop") -> tuple[int, ...]:
    own = graph.layer(name).layer
    assert isinstance(own, CropAligned)
    return own._offsets


def fcn8s() -> str:
    text, blob = data(1, 3, 70, 53), "data"
    for stage in range(1, 6):
        text += conv(f"conv{stage}", blob, 3, pad=100 if stage == 1 else 1) + pool(f"pool{stage}", f"conv{stage}")
        blob = f"pool{stage}"
    text += conv("score", blob, 7) + conv("score2", "score", 4, stride=2, kind="Deconvolution")
    text += layer("Crop", "crop4", "pool4", "score2") + layer("Eltwise", "fuse4", "score2", "crop4")
    text += conv("score4", "fuse4", 4, stride=2, kind="Deconvolution")
    text += layer("Crop", "crop3", "pool3", "score4") + layer("Eltwise", "fuse3", "score4", "crop3")
    text += conv("up", "fuse3", 16, stride=8, kind="Deconvolution")
    return text + layer("Crop", "crop", "up", "data")


def test_offsets_of_fcn8s_are_those_that_later_nets_state() -> None:
    graph = built(fcn8s())
    assert [offsets(graph, name) for name in ("crop4", "crop3", "crop")] == [(5, 5), (9, 9), (31, 31)]
    assert graph.shapes["crop"] == (1, 1, 70, 53)


@pytest.mark.parametrize(
    ("between", "wanted"),
    [
        (conv("y", "data", 1), (0, 0)),
        (conv("y", "data", 3, pad=3), (2, 2)),
        (conv("c", "data", 3, pad=3) + layer("ReLU", "r", "c") + layer("LRN", "y", "r"), (2, 2)),
        (conv("c", "data", 5, pad=4, stride=2) + conv("y", "c", 3, stride=2, kind="Deconvolution"), (3, 3)),
        (conv("c", "data", 3, pad=3) + layer("Crop", "d", "c", "data") + conv("y", "d", 3, pad=2), (1, 1)),
    ],
)
def test_other_ways(between: str, wanted: tuple[int, int]) -> None:
    assert offsets(built(data(2, 1, 8, 9) + between + layer("Crop", "crop", "y", "data"))) == wanted


def test_takes_the_part_also_in_onnx() -> None:
    pooled = layer("Pooling", "pooled", "in0", more="pooling_param { kernel_size: 3 stride: 1 pad: 2 }")
    it = Lone(built(data(2, 1, 5, 6, name="in0") + pooled + layer("Crop", "it", "pooled", "in0")))
    x, like = arrays((2, 1, 7, 8), (2, 1, 5, 6))
    np.testing.assert_array_equal(forward(it, [x, like])[0], x[:, :, 1:6, 1:7])
    check_gradients(it, [x, like])
    same = torch.nn.functional.max_pool2d(torch.from_numpy(like), 3, 1, 1).float()
    np.testing.assert_array_equal(run_onnx(session(it), [like])[0], same)


@pytest.mark.parametrize(
    ("between", "bottoms", "why"),
    [
        (data(1, 1, 8, 9, name="other"), ("data", "other"), "the bottoms come from no common blob"),
        (pool("y", "data"), ("data", "y"), "a step in bottom 0 is 0.5 of bottom 1"),
        (conv("y", "data", 3, pad=0), ("y", "data"), "bottom 1 begins at -1 of bottom 0"),
        (conv("y", "data", 4, pad=3), ("y", "data"), "bottom 1 begins at 1.5 of bottom 0"),
        (layer("Flatten", "y", "data", more="flatten_param { axis: 3 }"), ("y", "data"), 'Flatten "y" between'),
        (layer("Flatten", "y", "data"), ("y", "data"), "bottom 0 has 2 axes"),
        (conv("y", "data", 3, pad=3), ("data", "data"), ""),
    ],
)
def test_refusals(between: str, bottoms: tuple[str, str], why: str) -> None:
    net = data(1, 1, 8, 9) + between + layer("Crop", "crop", *bottoms)
    if not why:
        assert offsets(built(net)) == (0, 0)
        return
    with pytest.raises(VggcError, match=why) as caught:
        built(net)
    assert caught.value.remedy


def test_more_than_there_is_is_refused() -> None:
    halves = conv("half", "data", 2, stride=2) + conv("y", "half", 2, stride=2, kind="Deconvolution")  # 9 -> 4 -> 8
    net = data(1, 1, 8, 9) + halves + layer("Crop", "crop", "y", "data")
    with pytest.raises(VggcError, match="exceeds bottom 0's size"):
        built(net)


def test_crop_param_is_not_of_this_fork() -> None:
    net = data(1, 1, 8, 9) + layer("Crop", "crop", "data", "data", more="crop_param { offset: 1 }")
    with pytest.raises(VggcError, match="this fork has no crop_param"):
        built(net)
    assert type(Graph.from_net(parse_net(net.replace("offset: 1", ""))).layer("crop").layer).__name__ == "Crop"
