"""Nets made ready for training."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest

import prototxt
from caffe_compat.errors import VggcError
from caffe_compat.schema import pb
from repro.training.nets import INITS, net_file, training_net, weight_filler
from tests.repro.training.tiny import NET, write_net

OURS = ("A", "A-LRN", "B", "C", "D", "E", "B-shallow")
COUNTS = {"A": 132_863_336, "B": 133_047_848, "C": 133_638_952, "D": 138_357_544, "E": 143_667_240}
TRAIN_VAL = """
layer { name: "in" type: "Data" top: "x" top: "y" include { phase: TRAIN } transform_param { crop_size: 8 }
        data_param { source: "nowhere" batch_size: 4 } }
layer { name: "in" type: "Data" top: "x" top: "y" include { phase: TEST } transform_param { crop_size: 8 }
        data_param { source: "nowhere" batch_size: 4 } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv" convolution_param { num_output: 7 kernel_size: 8
        weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "acc" type: "Accuracy" bottom: "conv" bottom: "y" top: "acc" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "conv" bottom: "y" top: "loss" }
"""


def types(net: pb.NetParameter) -> list[str]:
    return [layer.type for layer in net.layer]


def test_a_deploy_net_gets_a_loss(tmp_path: Path) -> None:
    made = training_net(write_net(tmp_path), 3)
    assert types(made.message)[-1] == "SoftmaxWithLoss"
    assert "Softmax" not in types(made.message)
    assert (made.data, made.label, made.scores, made.crop) == ("data", "label", "fc2", 8)
    assert made.notes == ('layer "prob" (Softmax) is replaced by SoftmaxWithLoss',)
    assert made.graph("TRAIN", 5).inputs == {"data": (5, 3, 8, 8), "label": (5,)}
    scoring = made.graph("TEST", 5)
    assert scoring.inputs == {"data": (5, 3, 8, 8)}
    assert scoring.outputs == ("fc2",)


def test_without_a_softmax_the_loss_goes_to_the_end(tmp_path: Path) -> None:
    made = training_net(write_net(tmp_path, NET[: NET.index('layer { name: "prob"')]), 3)
    assert made.scores == "fc2"
    assert made.notes == ('SoftmaxWithLoss is attached to blob "fc2"',)


def test_a_training_net_loses_its_data_and_measures(tmp_path: Path) -> None:
    made = training_net(write_net(tmp_path, TRAIN_VAL), 7)
    assert types(made.message) == ["Input", "Convolution", "ReLU", "SoftmaxWithLoss"]
    assert (made.data, made.label, made.scores, made.feed, made.crop) == ("x", "y", "conv", "in", 8)
    assert made.notes == ('layer "in" (Data) is replaced by the images of --data',)


def test_the_scores_are_fitted_to_the_classes(tmp_path: Path) -> None:
    made = training_net(write_net(tmp_path, TRAIN_VAL), 5)
    assert made.graph("TRAIN", 2).shapes["conv"] == (2, 5, 1, 1)
    assert 'layer "conv" gives 5 scores, not 7: the data has that many classes' in made.notes


@pytest.mark.parametrize("name", OURS)
def test_our_nets(name: str) -> None:
    made = training_net(name, 1000)
    graph = made.graph("TRAIN", 2)
    count = sum(prod(shape) for shapes in graph.params.values() for shape in shapes)
    assert made.crop == 224
    assert count == COUNTS.get(name, count)
    assert net_file(name) == prototxt.find(f"{name}_train_val")
    assert {node.specs[1].lr_mult for node in graph.nodes if node.params} == {2.0}


def test_initial_weights(tmp_path: Path) -> None:
    path = write_net(tmp_path, TRAIN_VAL)

    def filler(init: str) -> pb.FillerParameter:
        return training_net(path, 7, init=init).message.layer[1].convolution_param.weight_filler

    assert filler("").type == "xavier", "the net's own"
    assert (filler("paper").type, filler("paper").std) == ("gaussian", pytest.approx(0.1))
    assert filler("caffe").std == pytest.approx(0.01)
    assert filler("glorot").variance_norm == pb.FillerParameter.AVERAGE
    assert filler("msra").type == "msra"
    own = training_net(write_net(tmp_path), 3).message.layer[1].convolution_param
    assert own.weight_filler.std == pytest.approx(0.01), "where the net states none"
    assert {weight_filler(init).type for init in INITS} == {"gaussian", "xavier", "msra"}


def test_another_crop(tmp_path: Path) -> None:
    assert training_net(write_net(tmp_path), 3, crop=16).graph("TRAIN", 1).shapes["pool1"] == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("SoftmaxWithLoss", "EuclideanLoss", "the net's loss is EuclideanLoss"),
        ('"SoftmaxWithLoss"', '"SoftmaxWithLoss" loss_param { normalization: NONE }', "summed over the batch"),
        ('top: "x" top: "y" include { phase: TRAIN }', 'top: "x" top: "y" top: "z"', "fed with 3 blobs"),
        ("transform_param { crop_size: 8 }", "", "states no size"),
    ],
)
def test_refusals(old: str, new: str, what: str, tmp_path: Path) -> None:
    path = write_net(tmp_path, TRAIN_VAL.replace(old, new))
    with pytest.raises(VggcError, match=what) as caught:
        training_net(path, 7)
    assert caught.value.remedy
    assert caught.value.where.source == str(path)


def test_unknown_names() -> None:
    with pytest.raises(VggcError, match="no such file") as caught:
        training_net("F", 3)
    assert "A, A-LRN, B" in caught.value.remedy
    with pytest.raises(VggcError, match="not a net"):
        training_net(prototxt.find("A_solver"), 3)
