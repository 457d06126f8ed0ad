"""The nets against Table 1, Table 2 and Sect. 3.1 of arXiv:1409.1556."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod

import pytest
from google.protobuf import text_format

import prototxt
from caffe_compat.graph import Graph
from caffe_compat.schema import pb
from tests.shared import ROOT

FC = ["FC-4096", "FC-4096", "FC-1000"]
TABLE_1 = {
    "A": "conv3-64 M conv3-128 M conv3-256 conv3-256 M conv3-512 conv3-512 M conv3-512 conv3-512 M",
    "A-LRN": "conv3-64 LRN M conv3-128 M conv3-256 conv3-256 M conv3-512 conv3-512 M conv3-512 conv3-512 M",
    "B": (
        "conv3-64 conv3-64 M conv3-128 conv3-128 M conv3-256 conv3-256 M conv3-512 conv3-512 M conv3-512 conv3-512 M"
    ),
    "C": (
        "conv3-64 conv3-64 M conv3-128 conv3-128 M conv3-256 conv3-256 conv1-256 M "
        "conv3-512 conv3-512 conv1-512 M conv3-512 conv3-512 conv1-512 M"
    ),
    "D": (
        "conv3-64 conv3-64 M conv3-128 conv3-128 M conv3-256 conv3-256 conv3-256 M "
        "conv3-512 conv3-512 conv3-512 M conv3-512 conv3-512 conv3-512 M"
    ),
    "E": (
        "conv3-64 conv3-64 M conv3-128 conv3-128 M conv3-256 conv3-256 conv3-256 conv3-256 M "
        "conv3-512 conv3-512 conv3-512 conv3-512 M conv3-512 conv3-512 conv3-512 conv3-512 M"
    ),
    "B-shallow": "conv5-64 M conv5-128 M conv5-256 M conv5-512 M conv5-512 M",
}
WEIGHT_LAYERS = {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19, "B-shallow": 8}
PARAMETERS = {
    "A": 132_863_336,
    "A-LRN": 132_863_336,
    "B": 133_047_848,
    "C": 133_638_952,
    "D": 138_357_544,
    "E": 143_667_240,
    "B-shallow": 134_503_528,
}
ENDS = {"Input", "Data", "Softmax", "SoftmaxWithLoss", "Accuracy"}

every_net = pytest.mark.parametrize("key", TABLE_1)


def read(name: str) -> pb.NetParameter:
    return text_format.Parse(prototxt.find(name).read_text(), pb.NetParameter())


def trunk(net: pb.NetParameter) -> list[pb.LayerParameter]:
    return [layer for layer in net.layer if layer.type not in ENDS]


def symbols(net: pb.NetParameter) -> list[str]:
    """The net in the words of Table 1; ReLU and dropout are not in it."""
    words: dict[str, Callable[[pb.LayerParameter], str]] = {
        "Convolution": lambda p: f"conv{p.convolution_param.kernel_size[0]}-{p.convolution_param.num_output}",
        "InnerProduct": lambda p: f"FC-{p.inner_product_param.num_output}",
        "LRN": lambda _: "LRN",
        "Pooling": lambda _: "M",
    }
    return [words[layer.type](layer) for layer in net.layer if layer.type in words]


def test_names_are_found_in_any_case() -> None:
    assert set(TABLE_1) | {"digits"} <= set(prototxt.names())
    assert {f"{key}{part}" for key in TABLE_1 for part in ("_train_val", "_solver")} <= set(prototxt.names())
    assert prototxt.find("a-lrn_TRAIN_val") == prototxt.find("A-LRN_train_val")
    for name in prototxt.names():
        assert prototxt.find(name).stem == name


@pytest.mark.parametrize("name", ["F", "", "../README", "E.prototxt"])
def test_other_names_are_refused_with_a_list(name: str) -> None:
    with pytest.raises(LookupError, match=r"A, A-LRN, .*, E, .*digits"):
        prototxt.find(name)


@every_net
def test_is_the_column_of_table_1(key: str) -> None:
    net = read(key)
    assert symbols(net) == TABLE_1[key].split() + FC
    assert sum(layer.type in ("Convolution", "InnerProduct") for layer in net.layer) == WEIGHT_LAYERS[key]


@every_net
def test_has_the_geometry_of_section_2(key: str) -> None:
    for layer in read(key).layer:
        if layer.type == "Convolution":
            p = layer.convolution_param
            assert list(p.pad) == ([p.kernel_size[0] // 2] if p.kernel_size[0] > 1 else [])
            assert (list(p.stride), list(p.dilation), p.group, p.bias_term) == ([], [], 1, True)
        elif layer.type == "Pooling":
            q = layer.pooling_param
            assert (q.pool, q.kernel_size, q.stride, q.pad) == (pb.PoolingParameter.MAX, 2, 2, 0)
        elif layer.type == "Dropout":
            assert layer.dropout_param.dropout_ratio == 0.5


@every_net
def test_every_hidden_layer_is_rectified_in_place(key: str) -> None:
    layers = trunk(read(key))
    for layer, following in pairwise(layers):
        if layer.type in ("Convolution", "InnerProduct"):
            assert following.type == "ReLU"
            assert list(following.bottom) == list(following.top) == list(layer.top) == [layer.name]
    assert layers[-1].name == "fc8"
    assert [layer.name for layer in layers if layer.type == "Dropout"] == ["drop6", "drop7"]


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("D", "conv1_1 relu1_1 conv1_2 relu1_2 pool1 conv2_1 relu2_1 conv2_2 relu2_2 pool2"),
        ("A", "conv1_1 relu1_1 pool1 conv2_1 relu2_1 pool2"),
        ("A-LRN", "conv1_1 relu1_1 norm1 pool1 conv2_1 relu2_1 pool2"),
    ],
)
def test_layers_have_the_released_names(key: str, names: str) -> None:
    layers = [layer.name for layer in read(key).layer]
    assert layers[0] == "data"
    assert layers[1 : 1 + len(names.split())] == names.split()
    assert layers[-8:] == ["fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8", "prob"]


def test_released_nets_have_their_names() -> None:
    assert read("D").name == "VGG_ILSVRC_16_layers"
    assert read("E").name == "VGG_ILSVRC_19_layers"


def test_lrn_is_that_of_krizhevsky_with_caffes_k() -> None:
    (norm,) = [layer for layer in read("A-LRN").layer if layer.type == "LRN"]
    p = norm.lrn_param
    assert (p.local_size, p.beta, p.k, p.norm_region) == (5, 0.75, 1.0, pb.LRNParameter.ACROSS_CHANNELS)
    assert p.alpha == pytest.approx(1e-4)
    assert "k = 2" in prototxt.find("A-LRN").read_text()


@every_net
def test_parameters_and_shapes_at_224(key: str) -> None:
    graph = Graph.from_net(read(key))
    assert dict(graph.inputs) == {"data": (10, 3, 224, 224)}
    assert sum(prod(shape) for shapes in graph.params.values() for shape in shapes) == PARAMETERS[key]
    sizes = [224, 112, 56, 28, 14, 7]
    for block, channels in enumerate((64, 128, 256, 512, 512), 1):
        assert graph.shapes[f"conv{block}_1"] == (10, channels, sizes[block - 1], sizes[block - 1])
        assert graph.shapes[f"pool{block}"] == (10, channels, sizes[block], sizes[block])
    assert (graph.shapes["fc6"], graph.shapes["fc7"]) == ((10, 4096), (10, 4096))
    assert graph.params["fc6"] == ((4096, 25088), (4096,))
    assert graph.outputs == ("prob",)
    assert graph.shapes["prob"] == (10, 1000)


def test_digits_is_a_narrow_configuration_a() -> None:
    net = read("digits")
    assert [s.partition("-")[0] for s in symbols(net)] == [s.partition("-")[0] for s in symbols(read("A"))]
    assert [layer.name for layer in net.layer] == [layer.name for layer in read("A").layer]
    graph = Graph.from_net(net)
    assert graph.inputs["data"][1:] == (3, 32, 32)
    assert graph.shapes["pool5"][2:] == (1, 1)
    assert graph.shapes["prob"][1:] == (10,)


@every_net
def test_training_net_has_the_layers_of_the_deployed_one(key: str) -> None:
    trained = trunk(read(f"{key}_train_val"))
    for layer in trained:
        del layer.param[:]
        for p in (layer.convolution_param, layer.inner_product_param):
            p.ClearField("weight_filler")
            p.ClearField("bias_filler")
        for field in ("convolution_param", "inner_product_param"):
            if not getattr(layer, field).ByteSize():
                layer.ClearField(field)  # type: ignore[arg-type]
    assert trained == trunk(read(key))


@every_net
def test_training_net_initialises_and_updates_as_stated(key: str) -> None:
    for layer in trunk(read(f"{key}_train_val")):
        if layer.type not in ("Convolution", "InnerProduct"):
            continue
        p = layer.convolution_param if layer.type == "Convolution" else layer.inner_product_param
        assert p.weight_filler.type == "gaussian"
        assert p.weight_filler.std == pytest.approx(0.01)
        assert (p.bias_filler.type, p.bias_filler.value) == ("constant", 0)
        assert [(s.lr_mult, s.decay_mult) for s in layer.param] == [(1, 1), (2, 0)]


@every_net
def test_training_net_reads_and_scores_as_in_section_3(key: str) -> None:
    net = read(f"{key}_train_val")
    train, test = (layer for layer in net.layer if layer.type == "Data")
    assert (train.include[0].phase, test.include[0].phase) == (pb.TRAIN, pb.TEST)
    assert (train.data_param.batch_size, test.data_param.batch_size) == (256, 50)
    assert (train.transform_param.mirror, test.transform_param.mirror) == (True, False)
    for layer in (train, test):
        assert list(layer.top) == ["data", "label"]
        assert layer.data_param.backend == pb.DataParameter.LMDB
        assert layer.transform_param.crop_size == 224
        assert list(layer.transform_param.mean_value) == pytest.approx([103.939, 116.779, 123.68])
    accuracies = [layer for layer in net.layer if layer.type == "Accuracy"]
    assert [layer.accuracy_param.top_k for layer in accuracies] == [1, 5]
    assert all(layer.include[0].phase == pb.TEST for layer in accuracies)
    assert [layer.type for layer in net.layer][-1] == "SoftmaxWithLoss"


@every_net
def test_solver_is_that_of_section_3(key: str) -> None:
    solver = text_format.Parse(prototxt.find(f"{key}_solver").read_text(), pb.SolverParameter())
    assert ROOT / solver.net == prototxt.find(f"{key}_train_val")
    assert solver.base_lr == pytest.approx(1e-2)
    assert solver.momentum == pytest.approx(0.9)
    assert solver.weight_decay == pytest.approx(5e-4)
    assert solver.max_iter == 370_000
    assert solver.gamma == pytest.approx(0.1)
    drops = [i for i in range(1, solver.max_iter) if i % solver.stepsize == 0]
    assert (solver.lr_policy, len(drops)) == ("step", 3)
    assert solver.test_iter[0] * 50 == 50_000
