"""Nets for whole images: the same weights, and at every place what the net gives for the window there."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

import caffe_compat as cc
from caffe_compat.dense import dense_arrays, dense_graph, dense_net, scores_and_posteriors
from caffe_compat.errors import GraphError, VggcError
from caffe_compat.graph import Value
from caffe_compat.module import Net
from caffe_compat.receptive import Field, receptive_fields
from caffe_compat.weights import Blob, Weights
from converters.model import Model
from converters.onnx_running import model_session
from prototxt import find
from tests.tolerances import ENGINES

DATA = (
    'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 2 dim: 3 dim: {0} dim: {1} }} }} }}'
)
CONV = """
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
         convolution_param {{ num_output: 4 kernel_size: 3 pad: {pad} weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "pool" type: "Pooling" bottom: "conv" top: "pool"
         pooling_param {{ pool: MAX kernel_size: 2 stride: 2 }} }}
layer {{ name: "conv2" type: "Convolution" bottom: "pool" top: "conv2"
         convolution_param {{ num_output: 5 kernel_h: 3 kernel_w: 2 pad: {pad} weight_filler {{ type: "xavier" }} }} }}
"""
XAVIER = 'weight_filler { type: "xavier" } bias_filler { type: "uniform" max: 1 }'
PLAIN = f"""
layer {{ name: "fc6" type: "InnerProduct" bottom: "conv2" top: "fc6" inner_product_param {{ num_output: 7 {XAVIER} }} }}
layer {{ name: "relu6" type: "ReLU" bottom: "fc6" top: "fc6" }}
layer {{ name: "drop6" type: "Dropout" bottom: "fc6" top: "fc6" }}
layer {{ name: "fc7" type: "InnerProduct" bottom: "fc6" top: "fc7" inner_product_param {{ num_output: 6 {XAVIER} }} }}
layer {{ name: "prob" type: "Softmax" bottom: "fc7" top: "prob" }}
"""
WOVEN = f"""
layer {{ name: "flat" type: "Flatten" bottom: "conv2" top: "flat" }}
layer {{ name: "act" type: "TanH" bottom: "flat" top: "act" }}
layer {{ name: "fc6" type: "InnerProduct" bottom: "act" top: "fc6" param {{ name: "w" }} param {{ name: "b" }}
         inner_product_param {{ num_output: 6 transpose: true {XAVIER} }} }}
layer {{ name: "again" type: "InnerProduct" bottom: "flat" top: "again" param {{ name: "w" }} param {{ name: "b" }}
         inner_product_param {{ num_output: 6 transpose: true {XAVIER} }} }}
layer {{ name: "scale" type: "Scale" bottom: "fc6" top: "fc6" scale_param {{ bias_term: true }} }}
layer {{ name: "sum" type: "Eltwise" bottom: "fc6" bottom: "again" top: "sum" }}
layer {{ name: "join" type: "Concat" bottom: "sum" bottom: "again" top: "join" concat_param {{ axis: -1 }} }}
layer {{ name: "shape" type: "Reshape" bottom: "join" top: "shape"
         reshape_param {{ shape {{ dim: 0 dim: -1 }} }} }}
layer {{ name: "fc7" type: "InnerProduct" bottom: "shape" top: "fc7"
         inner_product_param {{ num_output: 5 bias_term: false {XAVIER} }} }}
layer {{ name: "prob" type: "Softmax" bottom: "fc7" top: "prob" softmax_param {{ axis: -1 }} }}
"""
SIZE = (12, 10)


def net(head: str, pad: int = 0, size: tuple[int, int] = SIZE) -> Net:
    """A net in float64, with random weights and biases."""
    text = DATA.format(*size) + CONV.format(pad=pad) + head
    made = Net(cc.Graph.from_net(cc.parse_net(text)), seed=3).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 9
    return made


def images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@torch.no_grad()
def prob(net: Net, x: Tensor) -> Tensor:
    return net(x)["prob"]


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("head", [PLAIN, WOVEN])
def test_on_the_declared_size_it_is_the_net_itself(head: str, pad: int) -> None:
    crops = net(head, pad)
    x = images(*SIZE)
    torch.testing.assert_close(prob(dense_net(crops), x)[:, :, 0, 0], prob(crops, x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("head", [PLAIN, WOVEN])
def test_without_padding_every_place_is_the_net_on_its_window(head: str) -> None:
    """An explicit sliding window: step 2, from the first window that fits to the last."""
    crops = net(head)
    x = images(20, 18)
    whole = prob(dense_net(crops), x)
    assert whole.shape[2:] == (5, 5)
    for i, j in product(range(whole.shape[2]), range(whole.shape[3])):
        window = x[:, :, 2 * i : 2 * i + SIZE[0], 2 * j : 2 * j + SIZE[1]]
        torch.testing.assert_close(whole[:, :, i, j], prob(crops, window), rtol=1e-12, atol=1e-14)


def test_with_padding_inner_places_are_the_unpadded_net_on_their_receptive_field() -> None:
    """A place whose field lies inside the image meets no padding, so the net without pads gives it from that field."""
    crops = net(PLAIN, pad=1)
    dense = dense_net(crops)
    rows, columns = receptive_fields(dense.graph)[dense.graph.last("prob")]
    bare = dense_net(net(PLAIN, pad=0, size=(rows.size, columns.size)))
    for mine, theirs in zip(bare.parameters(), dense.parameters(), strict=True):
        mine.data = theirs.data
    x = images(40, 36)
    whole, met = prob(dense, x), 0
    for i, j in product(range(whole.shape[2]), range(whole.shape[3])):
        top, left = i * rows.step - rows.before, j * columns.step - columns.before
        window = x[:, :, max(0, top) : top + rows.size, max(0, left) : left + columns.size]
        if window.shape[2:] == (rows.size, columns.size):
            torch.testing.assert_close(whole[:, :, i, j], prob(bare, window)[:, :, 0, 0], rtol=1e-12, atol=1e-14)
            met += 1
    assert met >= 20


def test_a_place_depends_on_its_receptive_field_and_on_nothing_else() -> None:
    dense = dense_net(net(PLAIN, pad=1))
    rows, columns = receptive_fields(dense.graph)[dense.graph.last("prob")]
    x = images(40, 36, 1).requires_grad_()
    whole = dense(x, blobs=["fc7"])["fc7"]
    for i, j in ((0, 0), (5, 4), (whole.shape[2] - 1, whole.shape[3] - 1)):
        (gradient,) = torch.autograd.grad(whole[0, :, i, j].sum(), x, retain_graph=True)
        inside = torch.zeros(40, 36, dtype=torch.bool)
        top, left = i * rows.step - rows.before, j * columns.step - columns.before
        inside[max(0, top) : top + rows.size, max(0, left) : left + columns.size] = True
        assert not gradient[0][:, ~inside].any()
        assert (gradient[0].abs().sum(0)[inside] > 0).float().mean() > 0.5


@pytest.mark.parametrize(
    ("name", "blob", "field"),
    [
        ("D", "pool5", (32, 212)),
        ("D", "fc6", (32, 404)),
        ("D", "prob", (32, 404)),
        ("E", "pool5", (32, 268)),
        ("A", "pool5", (32, 150)),
    ],
)
def test_fields_of_the_papers_nets(name: str, blob: str, field: tuple[int, int]) -> None:
    """212 and 268 pixels are the published receptive fields of VGG-16's and VGG-19's last pooling."""
    graph = dense_graph(cc.Graph.from_net(cc.read_net(find(name))))
    rows, columns = receptive_fields(graph)[graph.last(blob)]
    assert (rows.step, rows.size) == field
    assert rows == columns


def test_fields_go_through_windows_alone() -> None:
    text = DATA.format(9, 9) + CONV.format(pad=1) + 'layer { name: "mvn" type: "MVN" bottom: "conv2" top: "mvn" }'
    known = receptive_fields(cc.Graph.from_net(cc.parse_net(text)))
    assert known[Value("data")] == (Field(), Field())
    assert Value("conv2") in known
    assert Value("mvn") not in known
    assert Field(2, 1, 4).through(3, 2, 1) == Field(4, 3, 6)


# -- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [PLAIN, WOVEN])
def test_weights_are_shared(head: str) -> None:
    crops = net(head)
    dense = dense_net(crops)
    assert [p.data_ptr() for p in dense.parameters()] == [p.data_ptr() for p in crops.parameters()]
    with torch.no_grad():
        crops.params["fc6"][0][0, 0] += 1
    assert dense.params["fc6"][0].flatten()[0] == crops.params["fc6"][0][0, 0]


def test_weights_are_views_of_the_same_arrays() -> None:
    graph = cc.Graph.from_net(cc.parse_net(DATA.format(*SIZE) + CONV.format(pad=1) + PLAIN))
    dense = dense_graph(graph)
    arrays = {
        key: Blob(shape, np.arange(int(np.prod(shape)), dtype=np.float32))
        for node in graph.nodes
        for key, shape in zip(node.params, node.blob_shapes, strict=True)
    }
    made = dense_arrays(dense, graph, arrays)
    for key, blob in arrays.items():
        assert np.shares_memory(made[key].values, blob.values)
        assert made[key].shape == dense.nodes[key.node].blob_shapes[key.blob]


@pytest.mark.parametrize("head", [PLAIN, WOVEN])
def test_onnx_takes_images_of_any_size(head: str) -> None:
    crops = net(head, pad=1).float()
    graph = dense_graph(crops.graph)
    blobs = {key: Blob(tuple(p.shape), p.detach().numpy().reshape(-1)) for key, p in crops.owned.items()}
    weights = dense_arrays(graph, crops.graph, blobs)
    session = model_session(Model(graph, weights, Weights(())), ["fc7", "prob"], open_size=True)
    dense = dense_net(crops)
    for height, width, count in ((*SIZE, 1), (23, 31, 3), (40, 13, 2)):
        x = images(height, width, count).float()
        with torch.no_grad():
            want = dense(x, blobs=["prob", "fc7"])
        for got, name in zip(session(["prob", "fc7"], {"data": x.numpy()}), ("prob", "fc7"), strict=True):
            assert ENGINES.ratio(got, want[name].numpy()) <= 1


def test_onnx_refuses_what_holds_for_one_size_only() -> None:
    pool = "pooling_param { pool: AVE kernel_size: 5 stride: 3 pad: 3 }"
    text = f'layer {{ name: "pool" type: "Pooling" bottom: "data" top: "pool" {pool} }}'
    graph = cc.Graph.from_net(cc.parse_net(DATA.format(9, 9) + text))
    with pytest.raises(VggcError, match="pool/Mul holds for one size of images only"):
        model_session(Model(graph, {}, Weights(())), ["pool"], open_size=True)


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ('layer { name: "max" type: "ArgMax" bottom: "fc6" top: "max" }', 'layer "max": ArgMax behind'),
        (
            'layer { name: "s" type: "Slice" bottom: "fc6" top: "a" top: "b" slice_param { axis: 0 } }',
            "works along axis 0",
        ),
        (
            'layer { name: "sum" type: "Eltwise" bottom: "fc6" bottom: "other" top: "sum" }',
            "joins values of single places with others",
        ),
    ],
)
def test_layers_without_a_form_for_whole_images(layers: str, said: str) -> None:
    other = 'layer { name: "in" type: "Input" top: "other" input_param { shape { dim: 2 dim: 7 } } }'
    text = DATA.format(*SIZE) + other + CONV.format(pad=0) + PLAIN.split("\nlayer")[1].join(["layer", ""]) + layers
    graph = cc.Graph.from_net(cc.parse_net(text))
    with pytest.raises(VggcError, match=re.escape(said)):
        dense_graph(graph)


def test_channels_of_a_flattened_window_cannot_be_scaled() -> None:
    text = (
        DATA.format(*SIZE)
        + CONV.format(pad=0)
        + (
            'layer { name: "flat" type: "Flatten" bottom: "conv2" top: "flat" }'
            'layer { name: "scale" type: "Scale" bottom: "flat" top: "scale" }'
            'layer { name: "fc" type: "InnerProduct" bottom: "scale" top: "fc" inner_product_param { num_output: 2 } }'
        )
    )
    with pytest.raises(VggcError, match="Scale behind an inner product has no form"):
        dense_graph(cc.Graph.from_net(cc.parse_net(text)))


def test_inner_products_over_other_axes() -> None:
    text = DATA.format(*SIZE) + (
        'layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" '
        "inner_product_param { num_output: 2 axis: 2 } }"
    )
    with pytest.raises(VggcError, match="over the axes from 2 on"):
        dense_graph(cc.Graph.from_net(cc.parse_net(text)))


def test_softmax_of_2013_is_over_the_whole_item() -> None:
    text = """
        input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8
        layers { layer { name: "fc" type: "innerproduct" num_output: 4 } bottom: "data" top: "fc" }
    """
    prob = 'layers { layer { name: "prob" type: "softmax" } bottom: "fc" top: "prob" }'
    dense = dense_graph(cc.Graph.from_net(cc.parse_net(text), profile="dec2013"))
    assert dense.layer("fc").layer.TYPE == "Convolution"
    graph = cc.Graph.from_net(cc.parse_net(text + prob), profile="dec2013")
    with pytest.raises(VggcError, match="Softmax behind an inner product"):
        dense_graph(graph)


def test_scores_and_posteriors() -> None:
    graph = net(PLAIN).graph
    assert scores_and_posteriors(graph) == ("fc7", "prob")
    cut = cc.Graph.from_net(cc.parse_net(DATA.format(*SIZE) + CONV.format(pad=0) + PLAIN[: PLAIN.rindex("layer")]))
    assert scores_and_posteriors(cut) == ("fc7", "")
    inplace = (DATA.format(*SIZE) + CONV.format(pad=0) + PLAIN).replace('top: "prob"', 'top: "fc7"')
    assert scores_and_posteriors(cc.Graph.from_net(cc.parse_net(inplace))) == ("", "fc7")
    two = DATA.format(*SIZE) + CONV.format(pad=0) + PLAIN + PLAIN.replace('"fc7"', '"x"').replace('"prob"', '"y"')
    with pytest.raises(VggcError):
        scores_and_posteriors(cc.Graph.from_net(cc.parse_net(two)))
    with pytest.raises(GraphError, match="2 outputs"):
        scores_and_posteriors(cc.Graph.from_net(cc.parse_net(DATA.format(4, 4) + TWO)))


TWO = 'layer { name: "s" type: "Slice" bottom: "data" top: "a" top: "b" slice_param { slice_point: 1 } }'
