"""Nets under the semantics of December 2013: how V0 is read, what is refused, gradients, weights.

The recorded nets are those of the parity harness (tests/data/golden2013); here are the rules one by one.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import caffe_compat as cc
from caffe_compat.binding import bind
from caffe_compat.dec2013 import FIELDS, TYPES, read
from caffe_compat.deploy import deploy
from caffe_compat.errors import (
    GraphError,
    LayerError,
    UnknownLayerError,
    UpgradeError,
    VggcError,
    WeightsError,
)
from caffe_compat.graph import Graph, ParamKey
from caffe_compat.layers.base import registered
from caffe_compat.loading import State
from caffe_compat.schema import pb
from caffe_compat.weights import Blob, LayerBlobs, Weights
from converters.convert import Options, convert
from tests.caffe_compat.v0_nets import document, graph, layer, module, net
from tests.parity.cases import DATA, Case, Folders, dec2013_cases
from tests.parity.compare import comparing
from tests.parity.dec2013 import check_layer_case

GOLDEN = DATA / "golden2013"
RECORDED = dec2013_cases(Folders(DATA / "golden", GOLDEN, DATA / "zoo"), "layer")
DATA_SHAPE = (2, 4, 6, 6)
LABEL = (2, 1, 1, 1)
CONV = layer("conv", "conv", "data", "conv", "num_output: 2 kernelsize: 3")
IP = layer("innerproduct", "ip", "data", "ip", "num_output: 3")
LEARNED = layer("innerproduct", "ip", "data", "ip", "num_output: 3 blobs_lr: 1 blobs_lr: 2")
LOSS = layer("softmax_loss", "loss", "ip label", "")


def translated(text: str) -> pb.NetParameter:
    return read(document(text).message).net


def refusals(text: str, profile: str = "dec2013") -> list[VggcError]:
    """What is refused; nothing else may be raised."""
    with pytest.raises(VggcError) as caught:
        graph(text, profile=profile)
    return list(getattr(caught.value, "errors", [caught.value]))


def places(text: str) -> list[tuple[int, str]]:
    """Line of each refusal, with what was refused; each has a column, a file and a remedy."""
    errors = refusals(text)
    for error in errors:
        assert error.where.column
        assert error.where.source == "net.prototxt"
        assert error.remedy
    return [(error.where.line, error.what) for error in errors]


# -- how V0 is read ----------------------------------------------------------------------------------------


def test_every_type_has_a_layer() -> None:
    known = {kind for kind, scope, _ in registered() if scope == "dec2013"}
    assert set(TYPES.values()) == known - {"Input"}
    assert len(FIELDS) == 17


def test_padding_stays_and_pads_of_others_do_nothing() -> None:
    text = net(
        layer("padding", "pad", "data", "pad", "pad: 2"),
        layer("conv", "conv", "pad", "conv", "num_output: 2 kernelsize: 3 pad: 7"),
        layer("pool", "pool", "conv", "pool", "kernelsize: 2 stride: 2 pad: 1"),
        data=DATA_SHAPE,
    )
    found = graph(text)
    assert [node.layer.TYPE for node in found.nodes] == ["Input", "Padding", "Convolution", "Pooling"]
    assert dict(found.shapes) == {"data": DATA_SHAPE, "pad": (2, 4, 10, 10), "conv": (2, 2, 8, 8), "pool": (2, 2, 4, 4)}
    assert not translated(text).layer[2].convolution_param.pad
    notes = read(document(text).message).notes
    assert notes == tuple(
        f'pad of layer "{name}" has no effect: type {name} does not read it' for name in ("conv", "pool")
    )


def test_fields_get_their_newer_names() -> None:
    fields = 'source: "db" batchsize: 3 rand_skip: 1 scale: 0.5 meanfile: "m" cropsize: 5 mirror: true'
    new = translated(net(layer("data", "d", "", "data label", fields))).layer[0]
    assert (new.data_param.source, new.data_param.batch_size, new.data_param.rand_skip) == ("db", 3, 1)
    transform = new.transform_param
    assert (transform.scale, transform.mean_file, transform.crop_size, transform.mirror) == (0.5, "m", 5, True)
    new = translated(net(layer("lrn", "n", "data", "n", "local_size: 3 alpha: 2 beta: 0.5"), data=DATA_SHAPE)).layer[1]
    assert (new.lrn_param.local_size, new.lrn_param.alpha, new.lrn_param.beta) == (3, 2, 0.5)


def test_multipliers_become_specs() -> None:
    fields = "num_output: 3 blobs_lr: 0 blobs_lr: 2 weight_decay: 1 weight_decay: 0"
    specs = graph(net(layer("innerproduct", "ip", "data", "ip", fields), data=DATA_SHAPE)).layer("ip").specs
    assert [(spec.lr_mult, spec.decay_mult) for spec in specs] == [(0, 1), (2, 0)]


def test_translation_changes_nothing_and_keeps_blobs() -> None:
    message = document(net(IP, head='name: "n" force_backward: true', data=DATA_SHAPE)).message
    message.layers[0].layer.blobs.add(num=1, channels=1, height=1, width=2, data=[1.0, 2.0])
    before = pb.NetParameter()
    before.CopyFrom(message)
    result = read(message)
    assert message == before
    assert (result.net.name, result.net.force_backward, result.generation) == ("n", True, "V0")
    assert list(result.net.layer[1].blobs[0].data) == [1.0, 2.0]
    assert result.origins == ("", "layers[0]")


def test_the_layer_for_inputs_has_a_name_of_its_own() -> None:
    text = net(layer("innerproduct", "input", "data", "ip", "num_output: 3"), data=DATA_SHAPE)
    assert [node.layer.name for node in graph(text).nodes] == ["input_", "input"]


def test_outputs_are_sorted_by_bytes() -> None:
    assert graph(net(layer("relu", "r", "b", "Z"), b=LABEL, a=LABEL)).outputs == ("Z", "a")


# -- what is refused ---------------------------------------------------------------------------------------


def test_all_unknown_types_are_told_at_once() -> None:
    text = net(layer("sigmoid", "s", "data", "s"), layer("split", "p", "s", "p q"), data=DATA_SHAPE)
    assert [type(error) for error in refusals(text)] == [UnknownLayerError] * 2
    assert [line for line, _ in places(text)] == [3, 4]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (net(layer("lrn", "n", "data", "n", "k: 2"), data=DATA_SHAPE), 3, "k did not exist"),
        (net(layer("conv", "c", "data", "c", "concat_dim: 1"), data=DATA_SHAPE), 3, "concat_dim did not exist"),
        (net(IP, head="debug_info: true", data=DATA_SHAPE), 1, "debug_info did not exist"),
        (net(IP, head="input_shape { dim: 1 }", data=DATA_SHAPE), 1, "input_shape did not exist"),
        (net(IP, data=(2, 4, 6)), 2, "3 input_dim for 1 input(s)"),
        (net(IP, head="input_dim: 2"), 1, "1 input_dim for 0 input(s)"),
        (net(IP, layer("relu", "r", "data", "r"), data=DATA_SHAPE), 4, '"data" has a reader already'),
        (net(layer("euclidean_loss", "e", "data data", ""), data=DATA_SHAPE), 3, '"data" has a reader already'),
        (net(layer("relu", "r", "nothing", "r"), data=DATA_SHAPE), 3, "not a blob so far"),
        (net(IP, layer("relu", "r", "d2", "ip"), data=DATA_SHAPE, d2=LABEL), 5, "more than one layer"),
        (
            net(layer("innerproduct", "i", "data", "i", "num_output: 3 blobs_lr: 1"), data=DATA_SHAPE),
            3,
            "1 blobs_lr for 2",
        ),
        (net(layer("relu", "r", "data", "r", "blobs_lr: 1"), data=DATA_SHAPE), 3, "1 blobs_lr for 0"),
        (net(CONV.replace("3 }", "3 blobs_lr: 1 blobs_lr: -1 }"), data=DATA_SHAPE), 3, "blobs_lr -1 is negative"),
        (net(CONV.replace("3 }", "3 weight_decay: 1 }"), data=DATA_SHAPE), 3, "1 weight_decay for 2"),
        (net(CONV.replace("3 }", "9 }"), data=DATA_SHAPE), 3, "kernel 9 is larger"),
        (net(LEARNED, LOSS.replace("} bottom", '} top: "t" bottom'), data=DATA_SHAPE, label=LABEL), 5, "0 top blob(s)"),
        (net(layer("data", "d", "", "data label", "batchsize: 2 mirror: true")), 2, "mirror without crop_size"),
    ],
)
def test_refuses(text: str, line: int, said: str) -> None:
    (found,) = places(text)
    assert found[0] == line
    assert said in found[1]


def test_places_are_those_of_v0_fields() -> None:
    (error,) = refusals(net(CONV.replace("3 }", "9 }"), data=DATA_SHAPE))
    text = net(CONV.replace("3 }", "9 }"), data=DATA_SHAPE).splitlines()[error.where.line - 1]
    assert text[error.where.column - 1 :].startswith("kernelsize")


def test_mixed_generations_are_refused() -> None:
    with pytest.raises(UpgradeError):
        graph(net(IP, 'layers { name: "r" type: RELU bottom: "ip" top: "r" }', data=DATA_SHAPE))


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(GraphError, match="no profile"):
        graph(net(IP, data=DATA_SHAPE), profile="dec2014")


# -- later generations -------------------------------------------------------------------------------------

V2 = """input: "data" input_dim: 2 input_dim: 4 input_dim: 6 input_dim: 6
layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { kernel_size: 3 num_output: 2 pad: 0 }}
layer { name: "r" type: "ReLU" bottom: "c" top: "c" relu_param { } }
layer { name: "i" type: "InnerProduct" bottom: "c" top: "i" inner_product_param { num_output: 2 }  # two blobs
        param { lr_mult: 1 } param { lr_mult: 2 } }
layer { name: "p" type: "Softmax" bottom: "i" top: "p" }
"""
V1 = """input: "data" input_dim: 2 input_dim: 4 input_dim: 6 input_dim: 6
layers { name: "c" type: CONVOLUTION bottom: "data" top: "c" convolution_param { num_output: 2 kernel_size: 3 } }
layers { name: "p" type: SOFTMAX bottom: "c" top: "p" }
"""


@pytest.mark.parametrize("text", [V1, V2])
def test_later_generations_without_anything_newer_are_taken(text: str) -> None:
    found = graph(text)
    assert found.shapes["p"] in {(2, 2, 1, 1), (2, 2, 4, 4)}


def test_a_translated_net_is_read_again_as_it_is() -> None:
    text = net(layer("padding", "pad", "data", "pad", "pad: 2"), LEARNED, head="force_backward: true", data=DATA_SHAPE)
    once = translated(text.replace('bottom: "data" top: "ip"', 'bottom: "pad" top: "ip"'))
    assert read(once).net == once
    assert Graph.from_net(once, profile="dec2013").shapes["ip"] == (2, 3, 1, 1)


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("pad: 0", "pad: 1", 2, "convolution_param.pad"),
        ("relu_param { }", "relu_param { negative_slope: 0.1 }", 3, "relu_param"),
        ("lr_mult: 2", 'lr_mult: 2 name: "w"', 5, "param[1].name"),
        ('type: "Softmax"', 'type: "Softmax" include { phase: TEST }', 6, "include"),
        ('type: "Softmax"', 'type: "TanH"', 6, 'layer type "TanH"'),
        ('top: "i" ', 'top: "i" propagate_down: true ', 4, "propagate_down"),
        ('input: "data"', 'debug_info: true input: "data"', 1, "debug_info"),
    ],
)
def test_what_later_generations_added_is_refused(old: str, new: str, line: int, said: str) -> None:
    ((place, what),) = places(V2.replace(old, new))
    assert place == line
    assert what == f"{said} did not exist in December 2013"
    assert "--profile bvlc" in refusals(V2.replace(old, new))[0].remedy


# -- gradients ---------------------------------------------------------------------------------------------

QUIRKS = [case for case in RECORDED if case.id.startswith("layers/net_") or "quirk" in case.tags]


@pytest.mark.parametrize("case", QUIRKS, ids=str)
def test_recorded_nets(case: Case) -> None:
    with comparing() as compare:
        check_layer_case(case, compare)


def test_layers_without_need_of_a_backward_pass_learn_nothing() -> None:
    text = net(
        CONV,
        layer("innerproduct", "ip", "conv", "ip", "num_output: 3 blobs_lr: 1 blobs_lr: 0"),
        LOSS,
        data=DATA_SHAPE,
        label=LABEL,
    )
    built = module(text, "TRAIN")
    assert [blob.requires_grad for blob in built.params["conv"]] == [False, False]
    assert [blob.requires_grad for blob in built.params["ip"]] == [True, False]
    data = torch.rand(DATA_SHAPE, requires_grad=True)
    built.trace({"data": data, "label": torch.zeros(LABEL)}).loss.backward()
    assert data.grad is None  # conv has no backward pass
    assert built.params["ip"][0].grad is not None
    assert built.notes == (
        'layer "conv" gets no gradient: neither its blobs_lr nor that of a layer below is stated above 0',
    )


def test_a_loss_above_nothing_that_learns_is_0() -> None:
    feed = {"data": torch.rand(DATA_SHAPE), "label": torch.zeros(LABEL)}
    assert module(net(IP, LOSS, data=DATA_SHAPE, label=LABEL)).trace(feed).loss == 0
    assert module(net(LEARNED, LOSS, data=DATA_SHAPE, label=LABEL)).trace(feed).loss > 0
    forced = net(IP, LOSS, head="force_backward: true", data=DATA_SHAPE, label=LABEL)
    assert module(forced).trace(feed).loss > 0
    assert any("counts as 0" in note for note in module(net(IP, LOSS, data=DATA_SHAPE, label=LABEL), "TRAIN").notes)


def test_the_loss_is_the_sum_of_all() -> None:
    second = layer("euclidean_loss", "e", "data2 target", "")
    text = net(
        LEARNED, LOSS, second, head="force_backward: true", data=DATA_SHAPE, label=LABEL, data2=LABEL, target=LABEL
    )
    feed = {"data": torch.rand(DATA_SHAPE), "label": torch.zeros(LABEL)}
    alone = module(net(LEARNED, LOSS, data=DATA_SHAPE, label=LABEL)).trace(feed).loss
    both = module(text).trace(feed | {"data2": torch.full(LABEL, 3.0), "target": torch.zeros(LABEL)}).loss
    assert (both - alone).item() == pytest.approx(9 / 2, rel=1e-6)  # (9 + 9) / 2 items / 2


def test_dropout_has_a_backward_pass_in_train_alone() -> None:
    drop = layer("dropout", "d", "ip", "ip")
    learning, resting = (net(product, drop, LOSS, data=DATA_SHAPE, label=LABEL) for product in (LEARNED, IP))
    feed = {"data": torch.rand(DATA_SHAPE), "label": torch.zeros(LABEL)}
    module(learning, "TRAIN").trace(feed).loss.backward()
    with pytest.raises(LayerError, match="no backward pass in the TEST phase"):
        module(learning).trace(feed).loss.backward()
    module(resting).trace(feed)  # nothing learns, so no backward pass comes here


def test_accuracy_refuses_the_backward_pass_of_its_net() -> None:
    accuracy = layer("accuracy", "a", "other label2", "a")
    branch = layer("innerproduct", "ip2", "data2", "other", "num_output: 3 blobs_lr: 1 blobs_lr: 1")
    text = net(LEARNED, LOSS, branch, accuracy, data=DATA_SHAPE, label=LABEL, data2=DATA_SHAPE, label2=LABEL)
    feed = {name: torch.rand(shape) for name, shape in module(text).inputs.items()}
    with pytest.raises(LayerError, match="no backward pass"):
        module(text).trace(feed | {"label": torch.zeros(LABEL), "label2": torch.zeros(LABEL)}).loss.backward()


def test_a_pass_without_gradients_does_not_disturb_one_with() -> None:
    pool = layer("pool", "pool", "data", "pool", "kernelsize: 2 stride: 2")
    text = net(pool, layer("relu", "r", "pool", "pool"), head="force_backward: true", data=(1, 1, 2, 2))
    built = module(text, "TRAIN")
    data = torch.tensor([[[[1.0, 2.0], [2.0, 0.0]]]], requires_grad=True)
    top = built.trace({"data": data}).blobs["pool"]
    with torch.no_grad():
        built({"data": -data})
    top.sum().backward()
    assert data.grad is not None
    assert data.grad.flatten().tolist() == [0, 1, 1, 0]  # both maxima


# -- weights -----------------------------------------------------------------------------------------------


def blobs(name: str, *shapes: tuple[int, ...], old: bool = True) -> LayerBlobs:
    return LayerBlobs(name, tuple(Blob(s, np.ones(int(np.prod(s)), np.float32), legacy=old) for s in shapes))


def test_all_four_sizes_must_agree() -> None:
    built = graph(net(IP, data=DATA_SHAPE))
    bind(built, Weights((blobs("ip", (1, 1, 3, 144), (1, 1, 1, 3)),)))
    for shape in ((3, 144, 1, 1), (1, 3, 1, 144), (1, 1, 144, 3)):
        with pytest.raises(WeightsError, match="blob 0"):
            bind(built, Weights((blobs("ip", shape, (1, 1, 1, 3)),)))
    with pytest.raises(WeightsError, match="1 blob"):
        bind(built, Weights((blobs("ip", (1, 1, 3, 144)),)))


def test_newer_files_may_leave_out_leading_ones() -> None:
    bound = bind(graph(net(IP, data=DATA_SHAPE)), Weights((blobs("ip", (3, 144), (3,), old=False),)))
    assert bound.arrays[ParamKey(1, 0)].shape == (1, 1, 3, 144)
    assert bound.reshaped == ("ip[0]: 3 x 144 -> 1 x 1 x 3 x 144", "ip[1]: 3 -> 1 x 1 x 1 x 3")


def test_weights_go_to_the_first_layer_of_a_name() -> None:
    again = layer("innerproduct", "ip", "ip", "top", "num_output: 3")
    bound = bind(
        graph(net(IP, again, data=DATA_SHAPE)), Weights((blobs("ip", (1, 1, 3, 144), (1, 1, 1, 3)),)), strict=False
    )
    assert {key.node for key in bound.arrays} == {1}


CHAIN = GOLDEN / "chain" / "convnet"


def test_a_snapshot_in_its_deploy_net() -> None:
    expected = json.loads((CHAIN / "expected.json").read_text())
    built = cc.load(CHAIN / "deploy.prototxt", CHAIN / "snap" / "convnet_iter_6", profile="dec2013")
    assert list(built.params) == expected["copied_into_deploy"]
    assert list(built.outputs) == expected["deploy_outputs"]
    with np.load(CHAIN / "case.npz") as record, torch.no_grad():
        values = built({"data": torch.from_numpy(record["in/data"])}, blobs="all")
        for blob, value in values.items():
            if f"out/{blob}" in record:
                np.testing.assert_allclose(value, record[f"out/{blob}"], rtol=1e-4, atol=1e-6)
        for name, parameters in built.params.items():
            for index, parameter in enumerate(parameters):
                np.testing.assert_array_equal(parameter.detach(), record[f"deploy_param/{name}/{index}"])


def test_a_snapshot_alone_becomes_onnx(tmp_path: Path) -> None:
    source = tmp_path / "convnet.caffemodel"
    source.write_bytes((CHAIN / "snap" / "convnet_iter_6").read_bytes())
    convert(source, [tmp_path / "convnet.onnx"], Options(state=State(profile="dec2013")))
    built = cc.load(source, profile="dec2013")
    data = torch.rand(1, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(tmp_path / "convnet.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        want = built(data)["prob"]
    np.testing.assert_allclose(session.run(None, {"data": data.numpy()})[0], want, rtol=1e-4, atol=1e-6)


def test_an_infogain_loss_is_deployed_without_a_softmax() -> None:
    text = net(IP, layer("infogain_loss", "loss", "ip label", "", 'source: "h"'), data=DATA_SHAPE, label=LABEL)
    kinds = [layer.type for layer in deploy(translated(text), weights=None, profile="dec2013").net.layer]
    assert kinds == ["Input", "InnerProduct"]
