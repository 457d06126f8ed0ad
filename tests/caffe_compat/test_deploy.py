"""Trained nets made runnable: labels, losses and data layers go, predictions stay."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

import prototxt
from caffe_compat.deploy import Deployed, deploy
from caffe_compat.errors import GraphError
from caffe_compat.graph import Graph, newest
from caffe_compat.layers.base import Context
from caffe_compat.reading import read_net
from caffe_compat.schema import pb
from caffe_compat.upgrade import Upgraded, upgrade
from caffe_compat.weights import Blob, LayerBlobs, Weights

PAPER = ("A", "A-LRN", "B", "B-shallow", "C", "D", "E")

DATA = """layer { name: "mnist" type: "Data" top: "data" top: "label" include { phase: TRAIN } }
          layer { name: "mnist" type: "Data" top: "data" top: "label" include { phase: TEST } }"""
LENET = """
  layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
          convolution_param { num_output: 20 kernel_size: 5 } }
  layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
          pooling_param { kernel_size: 2 stride: 2 } }
  layer { name: "ip1" type: "InnerProduct" bottom: "pool1" top: "ip1" inner_product_param { num_output: 10 } }
"""
ACCURACY = 'layer { name: "acc" type: "Accuracy" bottom: "ip1" bottom: "label" top: "acc" include { phase: TEST } }'
LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip1" bottom: "label" top: "loss" }'
LENET_SHAPES = {"conv1": [(20, 1, 5, 5), (20,)], "ip1": [(10, 20 * 12 * 12), (10,)]}


def net(text: str) -> pb.NetParameter:
    return upgrade(text_format.Parse(text, pb.NetParameter()))


def weights(shapes: dict[str, list[tuple[int, ...]]]) -> Weights:
    return Weights(
        tuple(
            LayerBlobs(name, tuple(Blob(shape, np.zeros(prod(shape), np.float32)) for shape in blobs))
            for name, blobs in shapes.items()
        )
    )


def deployed(text: str, shapes: dict[str, list[tuple[int, ...]]] | None = None, **given: tuple[int, ...]) -> Deployed:
    """The deployed net, checked to be runnable, a fixed point, and to leave its input alone."""
    before = net(text)
    original = net(text)
    blobs = weights(shapes) if shapes else None
    result = deploy(before, weights=blobs, input_shapes=given)
    assert before == original
    again = deploy(result.net, weights=blobs)
    assert (again.net, again.notes) == (result.net, ())
    assert again.origins == tuple(range(len(result.net.layer)))
    assert len(result.origins) == len(result.net.layer)
    for layer, origin in zip(result.net.layer, result.origins, strict=True):
        assert origin < 0 or layer.name == original.layer[origin].name
    Graph.from_net(result.net)
    return result


def kinds(result: Deployed) -> list[str]:
    return [layer.type for layer in result.net.layer]


def outputs(result: Deployed) -> tuple[str, ...]:
    return Graph.from_net(result.net).outputs


def said(result: Deployed, *words: str) -> bool:
    """Whether one note has all of the words."""
    return any(all(word in note for word in words) for note in result.notes)


# -- nets that run already -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PAPER, "digits"])
def test_a_deploy_net_comes_back_as_it_is(name: str) -> None:
    before = read_net(prototxt.find(name))
    result = deploy(before, weights=None)
    assert result.net == before
    assert result.net is not before
    assert result.notes == ()


def test_rules_and_constants_of_a_deploy_net_stay() -> None:
    text = """layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 } } }
              layer { name: "one" type: "DummyData" top: "one" dummy_data_param { shape { dim: 1 dim: 2 } } }
              layer { name: "w" type: "Parameter" top: "w" parameter_param { shape { dim: 1 dim: 2 } } }
              layer { name: "sum" type: "Eltwise" bottom: "data" bottom: "one" bottom: "w" top: "sum"
                      include { phase: TEST } }
              layer { name: "quiet" type: "Silence" bottom: "sum" }"""
    assert deployed(text).notes == ()


# -- classification --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_training_nets_become_their_deploy_nets(name: str) -> None:
    result = deploy(read_net(prototxt.find(f"{name}_train_val")), weights=None)
    want, got = Graph.from_net(read_net(prototxt.find(name))), Graph.from_net(result.net)
    assert [(n.layer.name, n.layer.TYPE, n.bottoms, n.tops) for n in got.nodes] == [
        (n.layer.name, n.layer.TYPE, n.bottoms, n.tops) for n in want.nodes
    ]
    assert got.params == want.params
    assert got.inputs == {"data": (1, 3, 224, 224)}
    assert got.outputs == ("prob",)


def test_a_train_val_net() -> None:
    result = deployed(DATA + LENET + ACCURACY + LOSS, LENET_SHAPES)
    assert kinds(result) == ["Input", "Convolution", "Pooling", "InnerProduct", "Softmax"]
    assert outputs(result) == ("prob",)
    assert list(result.net.layer[0].input_param.shape[0].dim) == [1, 1, 28, 28]
    assert said(result, '"mnist" (Data)', "not part of the TEST phase")
    assert said(result, '"label"', "only losses and measures")
    assert said(result, '"acc" (Accuracy)', "only measures")
    assert said(result, '"loss" (SoftmaxWithLoss)', 'Softmax "ip1" -> "prob"')
    assert said(result, '"mnist" (Data) by an Input', "1 x 1 x 28 x 28", 'layer "conv1"', "from 27 to 28")
    assert not said(result, "{")


def test_the_second_top_of_a_softmax_loss_keeps_its_name() -> None:
    loss = LOSS.replace('top: "loss"', 'top: "loss" top: "p"')
    assert outputs(deployed(DATA + LENET + loss, LENET_SHAPES)) == ("p",)


def test_softmax_parameters_go_along() -> None:
    loss = LOSS.replace('top: "loss"', 'top: "loss" softmax_param { axis: -1 }')
    assert deployed(DATA + LENET + loss, LENET_SHAPES).net.layer[-1].softmax_param.axis == -1
    infogain = """layer { name: "loss" type: "InfogainLoss" bottom: "ip1" bottom: "label" top: "loss"
                          infogain_loss_param { source: "h" axis: 1 } }"""
    assert deployed(DATA + LENET + infogain, LENET_SHAPES).net.layer[-1] == pb.LayerParameter(
        name="prob", type="Softmax", bottom=["ip1"], top=["prob"], softmax_param=pb.SoftmaxParameter(axis=1)
    )


@pytest.mark.parametrize(
    ("loss", "last", "output"),
    [
        ("SigmoidCrossEntropyLoss", "Sigmoid", "prob"),
        ("EuclideanLoss", "InnerProduct", "ip1"),
        ("HingeLoss", "InnerProduct", "ip1"),
        ("SomebodysLoss", "InnerProduct", "ip1"),
    ],
)
def test_each_loss(loss: str, last: str, output: str) -> None:
    result = deployed(DATA + LENET + LOSS.replace("SoftmaxWithLoss", loss), LENET_SHAPES)
    assert kinds(result)[-1] == last
    assert outputs(result) == (output,)
    assert said(result, f'"loss" ({loss})')


def test_a_softmax_that_is_there_already_is_not_doubled() -> None:
    softmax = 'layer { name: "s" type: "Softmax" bottom: "ip1" top: "s" include { phase: TEST } }'
    result = deployed(DATA + LENET + LOSS + softmax, LENET_SHAPES)
    assert outputs(result) == ("s",)
    assert said(result, '"loss"', "it is a loss")


def test_prob_may_be_taken() -> None:
    text = (DATA + LENET + LOSS).replace('"pool1"', '"prob"')
    result = deployed(text, {"conv1": LENET_SHAPES["conv1"], "ip1": LENET_SHAPES["ip1"]})
    assert outputs(result) == ("ip1_prob",)


def test_losses_of_losses_go() -> None:
    text = """layer { name: "half" type: "Power" bottom: "loss" top: "half" power_param { scale: 0.5 } }
              layer { name: "quiet" type: "Silence" bottom: "half" }"""
    result = deployed(DATA + LENET + LOSS + text, LENET_SHAPES)
    assert outputs(result) == ("prob",)
    assert said(result, '"half" (Power)', "nothing that it reads is left")


def test_a_loss_by_its_weight() -> None:
    loss = """layer { name: "own" type: "Python" bottom: "ip1" bottom: "label" top: "own" loss_weight: 1
                      python_param { module: "m" layer: "L" } }"""
    result = deployed(DATA + LENET + loss, LENET_SHAPES)
    assert outputs(result) == ("ip1",)
    assert said(result, '"own" (Python)', "it is a loss")


# -- several tasks, several inputs ---------------------------------------------------------------------------


def test_every_task_gives_its_output() -> None:
    text = """
      layer { name: "in" type: "HDF5Data" top: "all" top: "data" }
      layer { name: "cut" type: "Slice" bottom: "all" top: "label" top: "box" slice_param { slice_point: 1 } }
    """ + (
        LENET
        + """
      layer { name: "ip2" type: "InnerProduct" bottom: "pool1" top: "ip2" inner_product_param { num_output: 4 } }
      layer { name: "bridge" type: "Python" bottom: "ip1" bottom: "label" top: "ip1_valid" top: "label_valid"
              python_param { module: "m" layer: "Bridge" } }
      layer { name: "cls" type: "SoftmaxWithLoss" bottom: "ip1_valid" bottom: "label_valid" top: "cls" }
      layer { name: "acc" type: "Accuracy" bottom: "ip1_valid" bottom: "label_valid" top: "acc" }
      layer { name: "reg" type: "EuclideanLoss" bottom: "ip2" bottom: "box" top: "reg" }"""
    )
    result = deployed(text, {**LENET_SHAPES, "ip2": [(4, 20 * 12 * 12), (4,)]})
    assert outputs(result) == ("ip2", "prob")
    assert list(result.net.layer[-1].bottom) == ["ip1"]
    assert list(result.net.layer[0].top) == ["data"]
    assert said(result, '"bridge" (Python)', '"ip1" is read in place of "ip1_valid"')
    assert said(result, '"cut" (Slice)', "nothing that it reads is left")


def test_the_heaviest_softmax_is_prob() -> None:
    heads = "".join(
        f"""layer {{ name: "ip{i}" type: "InnerProduct" bottom: "pool1" top: "ip{i}"
                     inner_product_param {{ num_output: 3 }} }}
            layer {{ name: "l{i}" type: "SoftmaxWithLoss" bottom: "ip{i}" bottom: "label" top: "l{i}"
                     loss_weight: {weight} }}"""
        for i, weight in ((2, 0.3), (3, 1), (4, 0.3))
    )
    shapes = {"conv1": LENET_SHAPES["conv1"], **{f"ip{i}": [(3, 20 * 12 * 12), (3,)] for i in (1, 2, 3, 4)}}
    result = deployed(DATA + LENET.replace("10", "3") + heads, shapes)
    assert outputs(result) == ("ip1", "ip2_prob", "ip4_prob", "prob")
    (best,) = [layer for layer in result.net.layer if layer.name == "prob"]
    assert list(best.bottom) == ["ip3"]


def test_a_siamese_net_keeps_both_features() -> None:
    twin = LENET.replace("conv1", "conv1_p").replace("pool1", "pool1_p").replace("ip1", "ip1_p")
    text = (
        """layer { name: "pair" type: "Data" top: "pair" top: "sim" }
           layer { name: "cut" type: "Slice" bottom: "pair" top: "data" top: "data_p" slice_param { slice_dim: 1 } }"""
        + LENET
        + twin.replace('"data"', '"data_p"')
        + """layer { name: "loss" type: "ContrastiveLoss" bottom: "ip1" bottom: "ip1_p" bottom: "sim" top: "loss" }"""
    )
    result = deployed(text, LENET_SHAPES | {f"{name}_p": blobs for name, blobs in LENET_SHAPES.items()})
    assert outputs(result) == ("ip1", "ip1_p")
    assert list(result.net.layer[0].input_param.shape[0].dim) == [1, 2, 28, 28]


def test_data_layers_that_are_batches_of_one_input_become_one() -> None:
    parts = "".join(
        f'layer {{ name: "{p}" type: "HDF5Data" top: "{p}_data" top: "{p}_label" include {{ phase: TRAIN }} }}'
        for p in ("pos", "neg")
    )
    joins = "".join(
        f"""layer {{ name: "join_{k}" type: "Concat" bottom: "pos_{k}" bottom: "neg_{k}" top: "{k}"
                     concat_param {{ axis: 0 }} }}"""
        for k in ("data", "label")
    )
    result = deployed(parts + joins + LENET + LOSS, LENET_SHAPES)
    assert kinds(result) == ["Input", "Convolution", "Pooling", "InnerProduct", "Softmax"]
    assert list(result.net.layer[0].top) == ["data"]
    assert said(result, '"pos" (HDF5Data), "neg" (HDF5Data) by an Input')


def test_an_autoencoder_is_judged_by_its_own_input() -> None:
    text = """layer { name: "d" type: "Data" top: "data" }
      layer { name: "flat" type: "Flatten" bottom: "data" top: "flat" }
      layer { name: "code" type: "InnerProduct" bottom: "data" top: "code" inner_product_param { num_output: 5 } }
      layer { name: "back" type: "InnerProduct" bottom: "code" top: "back" inner_product_param { num_output: 784 } }
      layer { name: "ce" type: "SigmoidCrossEntropyLoss" bottom: "back" bottom: "flat" top: "ce" }
      layer { name: "sig" type: "Sigmoid" bottom: "back" top: "sig" }
      layer { name: "l2" type: "EuclideanLoss" bottom: "sig" bottom: "flat" top: "l2" loss_weight: 0 }"""
    result = deployed(text, {"code": [(5, 784), (5,)], "back": [(784, 5), (784,)]})
    assert kinds(result) == ["Input", "InnerProduct", "InnerProduct", "Sigmoid"]
    assert outputs(result) == ("sig",)
    assert said(result, '"flat" (Flatten)', "only dropped layers need it")
    assert list(result.net.layer[0].input_param.shape[0].dim) == [1, 784]


def test_labels_leave_an_input_layer_with_their_shapes() -> None:
    text = """layer { name: "in" type: "Input" top: "label" top: "data"
                      input_param { shape { dim: 4 } shape { dim: 4 dim: 1 dim: 28 dim: 28 } } }"""
    layer = deployed(text + LENET + LOSS, LENET_SHAPES).net.layer[0]
    assert list(layer.top) == ["data"]
    assert [list(shape.dim) for shape in layer.input_param.shape] == [[4, 1, 28, 28]]


def test_data_that_feeds_weights_is_no_label() -> None:
    text = """layer { name: "in" type: "HDF5Data" top: "cont" top: "words" top: "target" }
      layer { name: "e" type: "Embed" bottom: "words" top: "e" embed_param { num_output: 4 input_dim: 9 } }
      layer { name: "lstm" type: "LSTM" bottom: "e" bottom: "cont" top: "lstm" recurrent_param { num_output: 4 } }
      layer { name: "loss" type: "SoftmaxWithLoss" bottom: "lstm" bottom: "target" top: "loss"
              softmax_param { axis: 2 } }"""
    result = deployed(text, None, cont=(5, 2), words=(5, 2))
    assert list(result.net.layer[0].top) == ["cont", "words"]
    assert outputs(result) == ("prob",)


# -- phases, stages and saved nets ---------------------------------------------------------------------------


def test_layers_that_only_train_are_kept_where_nothing_stands_in() -> None:
    text = (
        DATA.replace("TEST", "TRAIN")
        + LENET
        + """layer { name: "bn" type: "BatchNorm" bottom: "ip1" top: "ip1" include { phase: TRAIN }
                     batch_norm_param { use_global_stats: false } }
             layer { name: "noise" type: "Dropout" bottom: "ip1" top: "ip1" include { phase: TRAIN } }
             layer { name: "out" type: "InnerProduct" bottom: "ip1" top: "out" inner_product_param { num_output: 2 } }
             layer { name: "loss" type: "SoftmaxWithLoss" bottom: "out" bottom: "label" top: "loss"
                     include { phase: TRAIN } }"""
    )
    shapes = {**LENET_SHAPES, "bn": [(10,), (10,), (1,)], "out": [(2, 10), (2,)]}
    result = deployed(text, shapes)
    assert kinds(result)[0] == "Input"
    assert kinds(result)[3:] == ["InnerProduct", "BatchNorm", "InnerProduct", "Softmax"]
    assert not any(layer.include for layer in result.net.layer)
    assert not result.net.layer[4].batch_norm_param.HasField("use_global_stats")
    assert said(result, '"noise" (Dropout)', "TEST phase")
    assert said(result, "use_global_stats: false from 1")


def test_a_net_with_a_twin_for_each_phase_takes_that_of_test() -> None:
    def norm(phase: str, stats: str) -> str:
        return f"""layer {{ name: "bn" type: "BatchNorm" bottom: "ip1" top: "ip1" include {{ phase: {phase} }}
                            batch_norm_param {{ use_global_stats: {stats} }} }}"""

    text = DATA + LENET + norm("TRAIN", "false") + norm("TEST", "true") + LOSS
    result = deployed(text, {**LENET_SHAPES, "bn": [(10,), (10,), (1,)]})
    (layer,) = [layer for layer in result.net.layer if layer.type == "BatchNorm"]
    assert layer.batch_norm_param.use_global_stats


def test_a_net_for_training_alone_is_taken_as_it_is() -> None:
    text = "\n".join(line.replace("type:", "include { phase: TRAIN } type:") for line in (LENET + LOSS).split("\n"))
    result = deployed(DATA + text, LENET_SHAPES)
    assert kinds(result) == ["Input", "Convolution", "Pooling", "InnerProduct", "Softmax"]


SAVED = """
  layer { name: "in" type: "HDF5Data" top: "data" top: "label" phase: TRAIN }
  layer { name: "label_in_1_split" type: "Split" bottom: "label" top: "label_in_1_split_0" top: "label_in_1_split_1"
          phase: TRAIN }
  layer { name: "ip1" type: "InnerProduct" bottom: "data" top: "ip1" phase: TRAIN
          inner_product_param { num_output: 2 } }
  layer { name: "drop" type: "Dropout" bottom: "ip1" top: "ip1" phase: TRAIN }
  layer { name: "ip1_drop_0_split" type: "Split" bottom: "ip1" top: "ip1_drop_0_split_0" top: "ip1_drop_0_split_1"
          phase: TRAIN }
  layer { name: "acc" type: "Accuracy" bottom: "ip1_drop_0_split_0" bottom: "label_in_1_split_0" top: "acc"
          phase: TRAIN }
  layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip1_drop_0_split_1" bottom: "label_in_1_split_1" top: "loss"
          loss_weight: 1 phase: TRAIN }
"""


def test_a_net_saved_during_training() -> None:
    result = deployed(SAVED, {"ip1": [(2, 6), (2,)]})
    assert kinds(result) == ["Input", "InnerProduct", "Dropout", "Softmax"]
    assert [list(layer.bottom) for layer in result.net.layer] == [[], ["data"], ["ip1"], ["ip1"]]
    assert not any(layer.HasField("phase") for layer in result.net.layer)
    assert said(result, "2 Split layer(s)")
    assert said(result, "removed phase: TRAIN")
    assert Graph.from_net(result.net).layer("drop").layer.phase == "TEST"


def test_a_phase_that_the_author_gave_stays() -> None:
    text = DATA + LENET + LOSS + 'layer { name: "mc" type: "Dropout" bottom: "ip1" top: "mc" phase: TRAIN }'
    result = deployed(text, LENET_SHAPES)
    assert [layer.phase for layer in result.net.layer if layer.HasField("phase")] == [pb.TRAIN]


def test_stage_deploy() -> None:
    text = (
        """layer { name: "train" type: "Data" top: "data" top: "label" include { stage: "train" } }
           layer { name: "val" type: "Data" top: "data" top: "label" include { stage: "val" } }
           layer { name: "in" type: "Input" top: "data" include { stage: "deploy" }
                   input_param { shape { dim: 1 dim: 1 dim: 28 dim: 28 } } }"""
        + LENET
        + """layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip1" bottom: "label" top: "loss"
                     exclude { stage: "deploy" } }
             layer { name: "softmax" type: "Softmax" bottom: "ip1" top: "softmax" include { stage: "deploy" } }"""
    )
    result = deployed(text)
    assert kinds(result) == ["Input", "Convolution", "Pooling", "InnerProduct", "Softmax"]
    assert outputs(result) == ("softmax",)
    validation = deploy(net(text), weights=None, stages=["val"], input_shapes={"data": (1, 1, 28, 28)})
    assert said(validation, '"val" (Data) by an Input')


def test_inputs_of_which_only_the_names_were_saved() -> None:
    text = LENET + LOSS
    result = deployed(text, LENET_SHAPES)
    assert result.origins[0] == -1
    assert kinds(result)[0] == "Input"
    assert list(result.net.layer[0].input_param.shape[0].dim) == [1, 1, 28, 28]
    assert said(result, 'added an Input: "data" 1 x 1 x 28 x 28')


# -- shapes --------------------------------------------------------------------------------------------------

CONV = """layer { name: "c" type: "Convolution" bottom: "data" top: "c"
                  convolution_param { num_output: 2 kernel_size: 3 group: 2 } }"""


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        ('type: "Data" transform_param { crop_size: 17 }', (1, 8, 17, 17)),
        ('type: "Data" data_param { crop_size: 17 }', (1, 8, 17, 17)),
        ('type: "ImageData" image_data_param { new_height: 5 new_width: 7 }', (1, 8, 5, 7)),
        ('type: "AnnotatedData" transform_param { resize_param { height: 6 width: 5 } }', (1, 8, 6, 5)),
        (
            'type: "AnnotatedData" transform_param { crop_h: 4 crop_w: 9 resize_param { height: 10 width: 10 } }',
            (1, 8, 4, 9),
        ),
        ('type: "MemoryData" memory_data_param { batch_size: 2 channels: 8 height: 4 width: 5 }', (2, 8, 4, 5)),
        ('type: "DummyData" dummy_data_param { shape { dim: 3 dim: 8 dim: 4 dim: 4 } }', (3, 8, 4, 4)),
        ('type: "DummyData" dummy_data_param { num: 1 channels: 8 height: 6 width: 4 }', (1, 8, 6, 4)),
    ],
)
def test_what_tells_the_shape(data: str, shape: tuple[int, ...]) -> None:
    result = deployed(f'layer {{ name: "d" top: "data" {data} }} {CONV}', {"c": [(2, 4, 3, 3), (2,)]})
    assert tuple(result.net.layer[0].input_param.shape[0].dim) == shape


@pytest.mark.parametrize(
    ("transform", "channels"),
    [("mean_value: 1 mean_value: 2 mean_value: 3", 3), ("force_color: true", 3), ("force_gray: true", 1)],
)
def test_channels_without_weights(transform: str, channels: int) -> None:
    text = f'layer {{ name: "d" top: "data" type: "Data" transform_param {{ crop_size: 9 {transform} }} }}'
    result = deployed(text + CONV.replace("group: 2", ""))
    assert tuple(result.net.layer[0].input_param.shape[0].dim) == (1, channels, 9, 9)


@pytest.mark.parametrize(
    ("first", "shape"),
    [
        ('type: "Deconvolution" convolution_param { num_output: 2 kernel_size: 3 }', (5, 2, 3, 3)),
        ('type: "BatchNorm"', (5,)),
        ('type: "Scale"', (5,)),
    ],
)
def test_channels_by_the_first_layer_with_weights(first: str, shape: tuple[int, ...]) -> None:
    data = 'layer { name: "d" type: "Data" top: "data" transform_param { crop_size: 9 } }'
    result = deployed(f'{data} layer {{ name: "f" bottom: "data" top: "f" {first} }}', {"f": [shape]})
    assert tuple(result.net.layer[0].input_param.shape[0].dim) == (1, 5, 9, 9)


def test_images_for_an_inner_product() -> None:
    data = 'layer { name: "d" type: "Data" top: "data" transform_param { crop_size: 4 } }'
    ip = 'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }'
    result = deployed(data + ip, {"ip": [(2, 48), (2,)]})
    assert tuple(result.net.layer[0].input_param.shape[0].dim) == (1, 3, 4, 4)


def test_the_shape_that_is_asked_for_wins() -> None:
    result = deployed(DATA + LENET + LOSS, LENET_SHAPES, data=(5, 1, 27, 28))
    assert tuple(result.net.layer[0].input_param.shape[0].dim) == (5, 1, 27, 28)
    assert said(result, "as asked for")


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        (f'layer {{ name: "d" type: "Data" top: "data" }} {CONV}', {"c": [(2, 4, 3, 3)]}),  # any size would do
        (f'layer {{ name: "d" type: "Data" top: "data" }} {CONV}', None),  # no weights
        (DATA + LENET + LOSS, {**LENET_SHAPES, "ip1": [(10, 20 * 8 * 10), (10,)]}),  # not a square
        (DATA + LENET + LOSS, {"conv1": [(20,)], "ip1": LENET_SHAPES["ip1"]}),  # weights of another net
        (CONV, {"c": [(2, 4, 3, 3)]}),  # no input at all
    ],
)
def test_a_shape_that_nothing_tells_is_asked_for(text: str, shapes: dict[str, list[tuple[int, ...]]] | None) -> None:
    with pytest.raises(GraphError, match='shape of the input "data"') as caught:
        deploy(net(text), weights=weights(shapes) if shapes else None)
    assert "--input-shape data=1," in caught.value.remedy


V0_LENET = """
  layers { layer { name: "mnist" type: "data" source: "s" batchsize: 64 } top: "data" top: "label" }
  layers { layer { name: "conv1" type: "conv" num_output: 20 kernelsize: 5 } bottom: "data" top: "conv1" }
  layers { layer { name: "pad" type: "padding" pad: 1 } bottom: "conv1" top: "pad" }
  layers { layer { name: "pool1" type: "pool" kernelsize: 2 stride: 2 } bottom: "pad" top: "pool1" }
  layers { layer { name: "ip1" type: "innerproduct" num_output: 10 } bottom: "pool1" top: "ip1" }
  layers { layer { name: "loss" type: "softmax_loss" } bottom: "ip1" bottom: "label" }
"""


@pytest.mark.parametrize(("profile", "sizes"), [("bvlc", "from 26 to 27"), ("dec2013", "from 25 to 26")])
def test_an_old_training_net_under_either_semantics(profile: str, sizes: str) -> None:
    """The last pooling window may start inside the padding in 2013 alone."""
    old = newest(text_format.Parse(V0_LENET, pb.NetParameter()), profile)
    shapes = LENET_SHAPES if profile == "bvlc" else {"conv1": [(20, 1, 5, 5)], "ip1": [(1, 1, 10, 20 * 12 * 12)]}
    result = deploy(old.net, weights=weights(shapes), profile=profile)
    upgraded = Upgraded(result.net, ("",) * len(result.net.layer), (), (), "V2", False)
    built = Graph.from_upgraded(upgraded, Context(profile=profile))
    assert prod(built.params["ip1"][0]) == 10 * 20 * 12 * 12
    assert built.outputs == ("prob",)
    assert built.inputs == {"data": (1, 1, 26, 26)}
    assert said(result, '"ip1" fits', sizes)


def test_blobs_inside_the_message_stay_with_their_layers() -> None:
    message = net(DATA + LENET + LOSS)
    message.layer[2].blobs.add(data=[1.0, 2.0])
    result = deploy(message, weights=weights(LENET_SHAPES))
    assert list(result.net.layer[1].blobs[0].data) == [1.0, 2.0]


def test_golden_nets_with_losses_lose_them() -> None:
    folder = Path(__file__).parents[1] / "data" / "golden" / "upgrade" / "v1_sharing"
    result = deploy(upgrade(read_net(folder / "in.prototxt")), weights=None)
    assert not [layer.type for layer in result.net.layer if "Loss" in layer.type]
    assert result.notes
