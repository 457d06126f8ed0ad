"""torchvision's names for VGG nets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from safetensors.numpy import load_file

import caffe_compat as cc
import converters.names
import prototxt
from caffe_compat.binding import bind
from caffe_compat.errors import ConversionError
from caffe_compat.graph import Graph
from caffe_compat.schema import pb
from caffe_compat.weights import Blob, LayerBlobs, Weights
from converters.convert import Options, convert
from converters.model import Model
from converters.names import rename
from tests import models
from tests.converters.engines import check, in_ort

CONFIGURATIONS = {
    "A": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "B": [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "D": [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"],
    "E": [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
}
"""Widths of the convolutions and places of the poolings, as torchvision lists them for vgg11, 13, 16 and 19."""


def expected(configuration: list[int | str]) -> dict[str, tuple[int, ...]]:
    """Key -> shape of torchvision's state dict: a ReLU after each convolution, two Dropouts in the classifier."""
    keys: dict[str, tuple[int, ...]] = {}
    position, channels = 0, 3
    for entry in configuration:
        if isinstance(entry, int):
            keys |= {f"features.{position}.weight": (entry, channels, 3, 3), f"features.{position}.bias": (entry,)}
            channels = entry
        position += 2 if isinstance(entry, int) else 1
    for position, (out, into) in zip((0, 3, 6), ((4096, 512 * 7 * 7), (4096, 4096), (1000, 4096)), strict=True):
        keys |= {f"classifier.{position}.weight": (out, into), f"classifier.{position}.bias": (out,)}
    return keys


def model(net: pb.NetParameter) -> Model:
    """A net with weights that take no memory."""
    graph = Graph.from_net(net)
    zero = np.zeros((), np.float32)
    layers = []
    for node in graph.nodes:
        blobs = (Blob(shape, np.broadcast_to(zero, int(np.prod(shape)))) for shape in node.blob_shapes)
        layers.append(LayerBlobs(node.layer.name, tuple(blobs), node.layer.TYPE))
    weights = Weights(tuple(layers))
    return Model(graph, bind(graph, weights).arrays, weights)


def net(name: str) -> pb.NetParameter:
    return cc.read_net(prototxt.find(name))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_keys_are_those_of_torchvision(name: str) -> None:
    renamed = rename(model(net(name)), "torchvision")
    assert {item.name: item.shape for item in renamed.blobs()} == expected(CONFIGURATIONS[name])
    assert "BGR" in renamed.notes[-1]


def test_layers_without_weights_may_be_missing() -> None:
    plain = net("D")
    kept = [layer for layer in plain.layer if layer.type not in ("Dropout", "Softmax")]
    del plain.layer[:]
    plain.layer.extend(kept)
    assert {item.name for item in rename(model(plain), "torchvision").blobs()} == set(expected(CONFIGURATIONS["D"]))


@pytest.mark.parametrize(
    ("name", "layer"),
    [("A-LRN", "norm1"), ("B-shallow", "conv1_1"), ("C", "conv3_3"), ("digits", "conv1_1")],
)
def test_other_nets_are_refused_where_they_depart(name: str, layer: str) -> None:
    with pytest.raises(ConversionError, match="A, B, D and E") as caught:
        rename(model(net(name)), "torchvision")
    assert caught.value.where.layer == layer


@pytest.mark.parametrize(
    ("layer", "change"),
    [
        ("conv2_1", "convolution_param { dilation: 1 pad: 0 kernel_size: 1 }"),
        ("conv1_1", "convolution_param { bias_term: false }"),
        ("pool1", "pooling_param { pool: AVE }"),
        ("pool2", "pooling_param { kernel_size: 3 }"),
        ("relu3_1", "relu_param { negative_slope: 0.1 }"),
        ("fc7", "inner_product_param { transpose: true }"),
    ],
)
def test_details_that_torchvision_does_not_have_are_refused(layer: str, change: str) -> None:
    changed = net("A")
    (found,) = (each for each in changed.layer if each.name == layer)
    for field, value in text_format.Parse(change, pb.LayerParameter()).ListFields():
        for inner, number in value.ListFields():
            own = getattr(found, field.name)
            own.ClearField(inner.name)
            getattr(own, inner.name).extend(number) if not inner.has_presence else setattr(own, inner.name, number)
    with pytest.raises(ConversionError) as caught:
        rename(model(changed), "torchvision")
    assert caught.value.where.layer == layer


@pytest.fixture
def vgg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configuration A with two channels and eight hidden units, which then count as torchvision's."""
    monkeypatch.setattr(converters.names, "WIDTHS", (2,) * 5)
    monkeypatch.setattr(converters.names, "HIDDEN", 8)
    narrow = net("A")
    for layer in narrow.layer:
        if layer.type == "Convolution":
            layer.convolution_param.num_output = 2
        if layer.name in ("fc6", "fc7"):
            layer.inner_product_param.num_output = 8
    path = tmp_path / "a.caffemodel"
    path.write_bytes(models.caffemodel(models.with_weights(narrow)))
    return path


def test_files_have_the_names(vgg: Path, tmp_path: Path) -> None:
    targets = [tmp_path / "a.safetensors", tmp_path / "a.onnx", tmp_path / "a.pt"]
    report = convert(vgg, targets, Options(names="torchvision"))
    plain = convert(vgg, [tmp_path / "plain.onnx", tmp_path / "plain.safetensors"])
    keys = set(expected(CONFIGURATIONS["A"]))
    assert load_file(targets[0]).keys() == torch.load(targets[2], weights_only=True).keys() == keys
    assert {tensor.name for tensor in onnx.load(targets[1]).graph.initializer} & keys == keys
    assert report.notes[:-1] == plain.notes
    image = {"data": np.random.default_rng(0).normal(0, 50, (1, 3, 224, 224)).astype(np.float32)}
    check(in_ort(targets[1], image), in_ort(tmp_path / "plain.onnx", image))


def test_hdf5_keeps_caffes_names(vgg: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="Caffe's names"):
        convert(vgg, [tmp_path / "a.h5"], Options(names="torchvision"))
    assert [path.name for path in tmp_path.iterdir()] == [vgg.name]


def test_unknown_schemes_and_nets_are_refused(tmp_path: Path) -> None:
    models.write(tmp_path / "m.caffemodel")
    with pytest.raises(ConversionError, match="no naming scheme"):
        convert(tmp_path / "m.caffemodel", [tmp_path / "m.safetensors"], Options(names="keras"))
    options = Options(names="torchvision", weights_only=True)
    with pytest.raises(ConversionError, match="net that can be built"):
        convert(tmp_path / "m.caffemodel", [tmp_path / "m.safetensors"], options)
