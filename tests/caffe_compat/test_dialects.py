"""Dialects: the table of forks, numbers there and back, guesses, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from caffe_compat.commands import upgrade
from caffe_compat.dialects import (
    FOREIGN,
    OURS,
    dialects,
    forks_with_field,
    forks_with_type,
    is_fork_field,
    resolve,
    restore,
    translate,
)
from caffe_compat.errors import FormatError, GraphError, Problems, UnknownLayerError, VggcError
from caffe_compat.graph import Graph
from caffe_compat.guessing import Guess, guess_net
from caffe_compat.layers.base import Context, find_layer, implementation, registered
from caffe_compat.loading import State, open_net
from caffe_compat.reading import parse_net, read_document
from caffe_compat.schema import pb
from caffe_compat.textformat import parse
from caffe_compat.wire import read_caffemodel
from converters.convert import Options, convert
from converters.inspect_command import inspect_command
from tests.caffe_compat.wire_files import delimited, layer, number, packed, shape, varint

FORKS = Path(__file__).parents[1] / "data" / "golden" / "forks"
LAYER = pb.LayerParameter.DESCRIPTOR
INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: [1, 4, 6, 6] } } }\n'


def sample(kind: Any, dialect: str, depth: int = 0) -> dict[str, Any]:
    """Every field that the dialect has in a message, with some value."""
    own, values = dialects()[dialect], {}
    for field in kind.fields:
        if not own.has(kind, field.name) or (field.message_type and depth == 4):
            continue
        values[field.name] = value(field, dialect, depth) if field.has_presence else [value(field, dialect, depth)]
    return values


def value(field: Any, dialect: str, depth: int) -> Any:
    if field.message_type:
        return sample(field.message_type, dialect, depth + 1)
    if field.enum_type:
        return next(own.number for own in reversed(field.enum_type.values) if own.number < OURS)
    return "text" if field.type == field.TYPE_STRING else b"x" if field.type == field.TYPE_BYTES else 1


def full_layer(dialect: str) -> pb.LayerParameter:
    values = sample(LAYER, dialect)
    del values["blobs"]
    return pb.LayerParameter(**values)


# -- the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", dialects())
def test_numbers_of_a_fork_are_its_own(name: str) -> None:
    own = dialects()[name]
    for kind, fields in own.fields.items():
        descriptor = getattr(pb, kind).DESCRIPTOR
        assert len(set(fields.values())) == len(fields), kind
        assert all(0 < number < OURS for number in fields.values())
        assert all(own.has(descriptor, field) for field in fields)
    for origin in own.types.values():
        assert origin in dialects()
    assert all(dialects()[origin].types[kind] == origin for kind, origin in own.types.items())


def test_layers_name_dialects_that_exist() -> None:
    scopes = {scope for _, scope, cls in registered() if cls.DIALECTS}
    assert scopes <= dialects().keys()


def test_every_parameter_of_a_fork_belongs_to_one() -> None:
    ours = [field.name for field in LAYER.fields if is_fork_field(field)]
    assert [name for name in ours if not forks_with_field("LayerParameter", name)] == []


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("", ""),
        ("bvlc", "bvlc"),
        ("ssd", "ssd"),
        ("weiliu89/caffe@ssd", "ssd"),
        ("WeiLiu89/caffe", "ssd"),
        ("hszhao/PSPNet", "pspnet"),
        ("foss-for-synopsys-dwc-arc-processors/synopsys-caffe", "synopsys"),
    ],
)
def test_names(name: str, short: str) -> None:
    assert resolve(name) == short


def test_names_that_do_not_exist_are_answered_with_those_that_do() -> None:
    with pytest.raises(FormatError, match='no dialect is called "sdd"') as caught:
        resolve("sdd")
    assert all(name in caught.value.remedy for name in ("bvlc", *dialects()))


# -- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", dialects())
def test_numbers_there_and_back(name: str) -> None:
    message = full_layer(name)
    written = restore(message.SerializeToString(), name)
    assert pb.LayerParameter.FromString(translate(written, name)) == message
    own = dialects()[name].fields.get("LayerParameter", {})
    known = [number for field, number in own.items() if field in LAYER.fields_by_name]
    assert all(delimited_at(written, number) for number in known)


def delimited_at(data: bytes, number: int) -> bool:
    return varint(number << 3 | 2) in data


@pytest.mark.parametrize(
    ("name", "fork", "ours"),
    [
        ("ssd", delimited(202, number(1, 2)), "permute_param { order: 2 }"),
        ("pspnet", delimited(143, number(1, 61)), "interp_param { height: 61 }"),
        ("deeplab-v2", delimited(153, number(1, 61)), "interp_param { height: 61 }"),
        ("segnet", delimited(45, number(3, 1)), "bn_param { bn_mode: INFERENCE }"),
        ("yjxiong", delimited(160, number(1, 2)), "scale_param { axis: 2 }"),
        ("cascade-rcnn", delimited(121, number(13, 0)), "pooling_param { ceil_mode: false }"),
        ("rfcn", delimited(101, number(3, 3)), "loss_param { normalization: PRE_FIXED }"),
        ("rfcn", delimited(101, number(3, 4)), "loss_param { normalization: NONE }"),
        ("3d-faster-rcnn", delimited(147, number(1, 5)), "roi_pooling_param { pooled_l: 5 }"),
        ("crnn", delimited(200, number(4, 9)), "ctc_loss_param { blank_label: 9 }"),
    ],
)
def test_numbers_of_forks(name: str, fork: bytes, ours: str) -> None:
    message = parse(ours, pb.LayerParameter).message
    assert pb.LayerParameter.FromString(translate(fork, name)) == message
    assert restore(message.SerializeToString(), name) == fork


def test_fields_that_the_schema_lacks_keep_their_bytes() -> None:
    """PSPNet's seg_accuracy_param has the number that crop_param has in BVLC Caffe."""
    data = delimited(144, b"\x08\x07")
    assert translate(data, "pspnet") == delimited(FOREIGN + 144, b"\x08\x07")
    assert restore(translate(data, "pspnet"), "pspnet") == data


@pytest.mark.parametrize(
    ("name", "text", "lacking"),
    [
        ("ssd", "interp_param { height: 3 }", "ssd has no LayerParameter.interp_param"),
        ("fast-rcnn", "roi_pooling_param { pad_ratio: 1 }", "fast-rcnn has no ROIPoolingParameter.pad_ratio"),
        ("pspnet", "input_param { }", "pspnet has no LayerParameter.input_param"),
        ("bvlc", "norm_param { }", "BVLC Caffe has no LayerParameter.norm_param"),
        ("", "norm_param { }", "BVLC Caffe has no LayerParameter.norm_param"),
        ("ssd", "loss_param { normalization: PRE_FIXED }", "ssd has no LossParameter.NormalizationMode PRE_FIXED"),
        ("bvlc", "loss_param { normalization: PRE_FIXED }", "BVLC Caffe has no LossParameter.NormalizationMode"),
    ],
)
def test_what_a_fork_lacks_is_not_written(name: str, text: str, lacking: str) -> None:
    data = parse(text, pb.LayerParameter).message.SerializeToString()
    with pytest.raises(FormatError, match=lacking):
        restore(data, name)


# -- guesses -----------------------------------------------------------------------------------------------


def guess(text: str) -> Guess:
    document = parse(text, pb.NetParameter)
    assert isinstance(document.message, pb.NetParameter)
    return guess_net(document.message, document.map)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('layer { type: "Convolution" convolution_param { num_output: 3 } }', ""),
        ('layer { type: "NoSuchLayer" }', ""),
        ('layer { type: "Permute" bottom: "x" top: "y" permute_param { order: 0 } }', "ssd"),
        ('layer { type: "Interp" bottom: "x" top: "y" interp_param { height: 3 } }', "pspnet"),
        ('layer { type: "BN" bottom: "x" top: "y" bn_param { slope_filler { } } }', "pspnet"),
        ('layer { type: "BN" bottom: "x" top: "y" bn_param { bn_mode: INFERENCE } }', "segnet"),
        ('layer { type: "Upsample" bottom: "x" top: "y" upsample_param { scale: 2 } }', "mobilenet-yolo"),
        ('layer { type: "Upsample" bottom: ["x", "m"] top: "y" upsample_param { scale: 2 } }', "segnet"),
        ('layer { type: "ROIAlign" bottom: ["x", "r"] top: "y" roi_pooling_param { pad_ratio: 1 } }', "cascade-rcnn"),
        ('layer { type: "PSROIPooling" bottom: ["x", "r"] top: "y" }', "rfcn"),
        ('layer { type: "Normalize" bottom: "x" top: "y" normalize_param { } }', "caffe-windows"),
        ('layer { type: "BatchNorm" bottom: "x" top: "y" batch_norm_param { scale_bias: true } }', "nvidia"),
        (  # synopsys has both, but its ConvolutionDepthwise is not known, unlike openvino's
            'layer { type: "ConvolutionDepthwise" bottom: "x" top: "x" convolution_param { kernel_size: 3 stride: 1 } }'
            ' layer { type: "ShuffleChannel" bottom: "x" top: "y" }',
            "shufflenet",
        ),
        (
            'layer { type: "ReLU6" bottom: "x" top: "x" }\nlayer { type: "Yolov3" bottom: "x" top: "y" }',
            "mobilenet-yolo",
        ),
    ],
)
def test_guesses(text: str, name: str) -> None:
    assert (guess(text).dialect, guess(text).rivals) == (name, ())


def test_reasons() -> None:
    text = 'layer { name: "p" type: "Permute" bottom: "x" top: "y" permute_param { order: 0 } }'
    found = guess(text + text + 'layer { name: "n" type: "Normalize" bottom: "x" top: "y" }')
    assert found.reasons == ("Permute with permute_param (2 layers)", "Normalize")
    assert "chuanqi305" in found.alternatives
    assert found.notes() == ["taken for a net of the fork ssd: Permute with permute_param (2 layers), Normalize"]


def test_rivals_are_named() -> None:
    text = INPUT + 'layer { name: "n"\n  type: "BN" bottom: "x" top: "y" }'
    with pytest.raises(UnknownLayerError) as caught:
        Graph.from_net(parse_net(text), source=parse(text, pb.NetParameter).map)
    assert 'layer type "BN" means different things in pspnet, segnet' in caught.value.what
    assert "--dialect" in caught.value.remedy
    assert (caught.value.where.line, caught.value.where.layer) == (3, "n")
    for name in ("pspnet", "segnet"):
        assert Graph.from_net(parse_net(text), dialect=name).context.dialect == name


def test_each_layer_of_a_mixed_net_goes_by_its_own_fields() -> None:
    text = (
        INPUT
        + """
        layer { name: "a" type: "Permute" bottom: "x" top: "a" permute_param { order: 0 } }
        layer { name: "b" type: "Permute" bottom: "a" top: "b" permute_param { order: 0 } }
        layer { name: "c" type: "BN" bottom: "b" top: "c" bn_param { slope_filler { value: 1 } } }"""
    )
    graph = Graph.from_net(parse_net(text))
    assert [node.layer.context.dialect for node in graph.nodes[1:]] == ["ssd", "ssd", "pspnet"]
    assert type(graph.nodes[3].layer) is implementation("BN", "pspnet")


def cases() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FORKS / "index.json").read_text())["cases"]
    return found


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["id"])
def test_recorded_nets_are_taken_for_their_fork(case: dict[str, Any]) -> None:
    """Or for one that defines the layers alike; a rival is asked for, and told how."""
    document, wanted = read_document(FORKS / "layers" / f"{case['id']}.prototxt"), resolve(case["dialect"])
    assert isinstance(document.message, pb.NetParameter)
    assert document.map.unknown == ()
    found = guess_net(document.message, document.map)
    same = [implementation(kind, found.dialect) is implementation(kind, wanted) for kind in case["layer_types"]]
    assert wanted in (found.dialect, *found.rivals) or all(same)


@pytest.mark.parametrize("path", sorted((FORKS / "layers").glob("*.caffemodel")), ids=lambda path: path.stem)
def test_recorded_binary_nets(path: Path) -> None:
    model, text = read_caffemodel(path), parse_net(path.with_suffix(".prototxt").read_text())
    assert model.map.unknown == ()
    assert model.guess.dialect == {"ssdnet": "ssd"}.get(family := path.stem.split("_")[0], family)
    assert [own.type for own in model.net.layer if own.type != "Split"] == [own.type for own in text.layer]


# -- binary nets -------------------------------------------------------------------------------------------


def binary(tmp_path: Path, text: str, dialect: str) -> Path:
    """A net as that fork would have written it."""
    net = parse(text, pb.NetParameter).message
    path = tmp_path / "net.caffemodel"
    path.write_bytes(b"".join(delimited(100, restore(own.SerializeToString(), dialect)) for own in net.layer))
    return path


BINARY = [
    ("ssd", 'layer { type: "Permute" bottom: "x" top: "y" permute_param { order: [0, 2] } }'),
    ("pspnet", 'layer { type: "Interp" bottom: "x" top: "y" interp_param { zoom_factor: 8 pad_beg: -1 } }'),
    ("deeplab-v2", 'layer { type: "Interp" bottom: "x" top: "y" interp_param { height: 3 width: 4 } }'),
    ("segnet", 'layer { type: "Upsample" bottom: ["x", "m"] top: "y" upsample_param { scale: 2 } }'),
    ("mobilenet-yolo", 'layer { type: "Upsample" bottom: "x" top: "y" upsample_param { scale: 2 } }'),
    ("yjxiong", 'layer { type: "BN" bottom: "x" top: "y" bn_param { frozen: true } }'),
    ("yjxiong", 'layer { type: "Scale" bottom: "x" top: "y" scale_param { bias_term: true } }'),
    ("rfcn", 'layer { type: "BoxAnnotatorOHEM" bottom: ["a", "b", "c", "d"] top: ["e", "f"]'
             ' box_annotator_ohem_param { roi_per_img: 3 } }'),
    ("chuanqi305", 'layer { type: "ReLU6" bottom: "x" top: "x" relu6_param { engine: CAFFE } }'),
    ("nvidia", 'layer { type: "LSTM" bottom: ["x", "c"] top: "y" recurrent_param { num_output: 3 } }'),
    ("ssd", 'layer { type: "DetectionOutput" bottom: ["l", "c", "p"] top: "y"'
            ' detection_output_param { num_classes: 3 nms_param { top_k: 5 } } }'),
    ("textboxes", 'layer { type: "DetectionOutput" bottom: ["l", "c", "p"] top: "y"'
                  ' detection_output_param { num_classes: 3 share_location: true use_polygon: true } }'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), BINARY, ids=[f"{name}-{index}" for index, (name, _) in enumerate(BINARY)])
def test_binary_nets_are_read_as_their_fork_wrote_them(tmp_path: Path, name: str, text: str) -> None:
    path, message = binary(tmp_path, text, name), parse_net(text)
    for dialect in ("", name):
        model = read_caffemodel(path, dialect)
        assert (model.net, model.guess.dialect, model.map.unknown) == (message, name, ())
    assert not read_caffemodel(path).guess.rivals


def test_a_wrong_dialect_is_not_forced_on_the_fields(tmp_path: Path) -> None:
    path = binary(tmp_path, BINARY[1][1], "pspnet")
    model = read_caffemodel(path, "ssd")
    assert [unknown.path for unknown in model.map.unknown] == ["layer[0].input_param.#3", "layer[0].input_param.#5"]


def test_blobs_tell_as_well(tmp_path: Path) -> None:
    """BN has four blobs in PSPNet, two in SegNet."""
    blob = shape(1, 1, 1, 1) + packed(np.ones(1, np.float32))
    for count, name in ((4, "pspnet"), (2, "segnet")):
        path = tmp_path / f"{count}.caffemodel"
        path.write_bytes(layer(*[blob] * count, name="n", kind="BN", extra=delimited(3, b"x") + delimited(4, b"y")))
        assert (read_caffemodel(path).guess.dialect, read_caffemodel(path).guess.rivals) == (name, ())


def test_fields_of_a_fork_that_are_not_known_are_named_and_refused(tmp_path: Path) -> None:
    path = binary(tmp_path, BINARY[1][1], "pspnet")
    path.write_bytes(path.read_bytes() + delimited(100, delimited(2, b"SegAccuracy") + delimited(144, number(1, 3))))
    (unknown,) = read_caffemodel(path).map.unknown
    assert (unknown.path, unknown.ignored) == ("layer[1].seg_accuracy_param", False)
    problems = open_net(path, deploy=False, collect=True, strict=False).graph.problems
    assert any('unknown field "seg_accuracy_param", which is one of pspnet' in str(problem) for problem in problems)


def test_parameters_under_numbers_that_no_fork_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    net = parse_net(INPUT + 'layer { name: "u" type: "Upsample" bottom: "x" top: "y" }')
    path.write_bytes(net.SerializeToString())
    open_net(path, deploy=False)
    upsample = net.layer[1].SerializeToString() + delimited(9999, number(1, 2))
    path.write_bytes(delimited(100, net.layer[0].SerializeToString()) + delimited(100, upsample))
    with pytest.raises(GraphError, match="field #9999 of a Upsample layer is written by no fork") as caught:
        open_net(path, deploy=False)
    assert "--net" in caught.value.remedy


def test_numbers_that_the_rest_of_the_file_contradicts(tmp_path: Path) -> None:
    """A fork of PSPNet's layers with BVLC's later fields: number 143 is input_param in an Input layer."""
    path = tmp_path / "net.caffemodel"
    net = parse_net(INPUT + 'layer { name: "i" type: "Interp" bottom: "x" top: "y" }')
    path.write_bytes(net.SerializeToString())
    for dialect in ("", "pspnet"):
        model = read_caffemodel(path, dialect)
        assert (model.net, model.guess.dialect, model.guess.numbers) == (net, "pspnet", "")


def test_leftover_numbers_are_noted(tmp_path: Path) -> None:
    """Caffe reads binary files without a word about fields that it does not know."""
    net = parse_net(INPUT + 'layer { name: "r" type: "ReLU" bottom: "x" top: "y" }')
    path = tmp_path / "net.caffemodel"
    path.write_bytes(delimited(100, net.layer[0].SerializeToString() + number(250, 7)) + net.SerializeToString()[:0])
    path.write_bytes(path.read_bytes() + delimited(100, net.layer[1].SerializeToString()))
    opened = open_net(path)
    assert not opened.graph.problems
    assert any("layer[0].#250 is no field that Caffe has" in note for note in opened.losses)


# -- layers ------------------------------------------------------------------------------------------------


def test_alike_layers_have_one_class() -> None:
    assert implementation("Permute", "chuanqi305") is implementation("Permute", "ssd")
    assert find_layer("Permute", Context(dialect="crnn")) is implementation("Permute", "ssd")
    assert find_layer("Interp", Context(dialect="ssd")) is implementation("Interp", "pspnet")


def test_a_fork_with_a_layer_of_its_own_does_not_borrow_one() -> None:
    with pytest.raises(UnknownLayerError, match='layer type "BN" of caffe-windows is not supported'):
        find_layer("BN", Context(dialect="caffe-windows"))


def test_unknown_types_name_the_forks_that_have_them() -> None:
    text = INPUT + 'layer { name: "a"\n type: "Permute" bottom: "x" top: "a" }\nlayer { name: "b" type: "Proposal" }'
    with pytest.raises(Problems) as caught:
        Graph.from_net(parse_net(text), dialect="bvlc", source=parse(text, pb.NetParameter).map)
    first, second = (error for error in caught.value.errors if isinstance(error, UnknownLayerError))
    assert "it exists in ssd" in first.what
    assert first.remedy == "use --dialect ssd"
    assert first.where.line == 3
    assert f"it exists in {', '.join(forks_with_type('Proposal'))}" in second.what


@pytest.mark.parametrize(
    ("layer_text", "dialect", "what"),
    [
        ('type: "ReLU" permute_param { order: 0 }', "bvlc", 'unknown field "permute_param" under dialect bvlc'),
        (
            'type: "SoftmaxWithLoss" bottom: "l" loss_param { class_weighting: 1 }',
            "",
            "does not follow loss_param.class_",
        ),
        ('type: "SoftmaxWithLoss" bottom: "l" loss_param { normalization: PRE_FIXED }', "bvlc", 'field "PRE_FIXED"'),
        (
            'type: "Softmax" softmax_param { hard_ratio: 1 }',
            "",
            '_ratio", which is one of caffe-w',
        ),
        ('type: "ReLU" twist_param { }', "", 'unknown field "twist_param"'),
    ],
)
def test_fields_that_no_layer_follows_are_refused(layer_text: str, dialect: str, what: str) -> None:
    labels = 'layer { name: "li" type: "Input" top: "l" input_param { shape { dim: [1, 1, 6, 6] } } }\n'
    text = INPUT + labels + f'layer {{ name: "a" bottom: "x" top: "a"\n {layer_text} }}'
    document = parse(text, pb.NetParameter)
    assert isinstance(document.message, pb.NetParameter)
    first = Graph.from_net(document.message, dialect=dialect, source=document.map, collect=True).problems[0]
    assert what in first.what
    assert first.where.line == 4
    assert first.remedy


@pytest.mark.parametrize(
    ("field", "size"),
    [("", 3), ("ceil_mode: true", 3), ("ceil_mode: false", 2), ("ceil_mode: false round_mode: CEIL", 3)],
)
def test_ceil_mode_of_pooling(field: str, size: int) -> None:
    """cascade-rcnn and yolo9000 have it in place of round_mode; synopsys has both (pooling_layer.cpp)."""
    param = f"pooling_param {{ kernel_size: 3 stride: 2 {field} }}"
    text = f'layer {{ name: "p" type: "Pooling" bottom: "x" top: "y" {param} }}'
    assert Graph.from_net(parse_net(INPUT + text)).shapes["y"] == (1, 4, size, size)


@pytest.mark.parametrize("dialect", ["", "ssd"])
def test_fields_that_choose_an_engine_are_noted(dialect: str) -> None:
    text = "default_forward_type: FLOAT16\n" + INPUT
    document = parse(text, pb.NetParameter)
    assert isinstance(document.message, pb.NetParameter)
    graph = Graph.from_net(document.message, source=document.map, dialect=dialect)
    assert "default_forward_type changes nothing here and is ignored" in graph.notes[0]
    with pytest.raises(GraphError, match='unknown field "default_forward_type", which is one of nvidia'):
        Graph.from_net(document.message, source=document.map, dialect="bvlc")


def test_a_field_that_no_code_ever_read_is_noted() -> None:
    layer = 'layer { name: "r" type: "relu" can_clobber: false } bottom: "x" top: "y"'
    document = parse(f'input: "x" input_dim: [1, 2, 3, 4] layers {{ {layer} }}', pb.NetParameter)
    assert isinstance(document.message, pb.NetParameter)
    graph = Graph.from_net(document.message, source=document.map)
    assert graph.shapes["y"] == (1, 2, 3, 4)
    assert any("can_clobber is ignored: only Caffe of March 2014 had it" in note for note in graph.notes)
    with pytest.raises(GraphError, match='unknown field "can_clobber"'):
        Graph.from_net(document.message, source=document.map, dialect="bvlc")


# -- commands ----------------------------------------------------------------------------------------------


@pytest.fixture
def permuted(tmp_path: Path) -> Path:
    path = tmp_path / "net.prototxt"
    path.write_text(INPUT + 'layer { name: "p" type: "Permute" bottom: "x" top: "p" permute_param { order: [0, 2] } }')
    return path


def test_inspect_says_which_dialect_and_why(permuted: Path) -> None:
    done = CliRunner().invoke(inspect_command, [str(permuted)])
    assert done.exit_code == 0
    assert "dialect: ssd (Permute with permute_param); the same in chuanqi305" in done.output
    found = json.loads(CliRunner().invoke(inspect_command, [str(permuted), "--json"]).output)
    assert (found["dialect"], found["dialect_reasons"]) == ("ssd", ["Permute with permute_param"])
    done = CliRunner().invoke(inspect_command, [str(permuted), "--dialect", "weiliu89/caffe@ssd"])
    assert "dialect: ssd (asked for)" in done.output


@pytest.mark.parametrize("command", [inspect_command, upgrade])
def test_commands_refuse_dialects_that_do_not_exist(command: Any, permuted: Path) -> None:
    done = CliRunner().invoke(command, [str(permuted), "--dialect", "sdd"])
    assert done.exit_code == 2
    assert 'no dialect is called "sdd"' in done.output
    assert "segnet" in done.output


def test_open_net_refuses_dialects_that_do_not_exist(permuted: Path) -> None:
    with pytest.raises(VggcError, match="no dialect is called"):
        open_net(permuted, state=State(dialect="sdd"))


def test_converted_nets_remember_their_fork(tmp_path: Path) -> None:
    """BN without parameters says nothing of its fork."""
    source, target = tmp_path / "net.caffemodel", tmp_path / "net.safetensors"
    net = parse_net(INPUT + 'layer { name: "n" type: "BN" bottom: "x" top: "y" }')
    blob = shape(1, 4, 1, 1) + packed(np.ones(4, np.float32))
    source.write_bytes(delimited(100, net.layer[0].SerializeToString()))
    ends = delimited(3, b"x") + delimited(4, b"y")
    source.write_bytes(source.read_bytes() + layer(blob, blob, name="n", kind="BN", extra=ends))
    convert(source, [target], Options(state=State(dialect="segnet")))
    opened = open_net(target)
    assert (opened.guess.dialect, opened.graph.context.dialect) == ("segnet", "segnet")


def test_upgraded_binary_nets_keep_the_numbers_of_their_fork(tmp_path: Path) -> None:
    text = 'input: "x" input_dim: [1, 4, 6, 6]'
    body = 'layer { name: "p" type: "Permute" bottom: "x" top: "p" permute_param { order: [0, 2] } }'
    source = binary(tmp_path, body, "ssd")
    old = parse_net(text).SerializeToString()
    extra = delimited(100, delimited(1, b"q") + delimited(2, b"Permute") + delimited(3, b"p") + number(999, 1))
    source.write_bytes(old + source.read_bytes() + extra)
    target = tmp_path / "new.caffemodel"
    done = CliRunner().invoke(upgrade, [str(source), str(target)])
    assert done.exit_code == 0, done.output
    model = read_caffemodel(target)
    assert [own.type for own in model.net.layer] == ["Input", "Permute", "Permute"]
    assert list(model.net.layer[1].permute_param.order) == [0, 2]
    assert varint(202 << 3 | 2) in target.read_bytes()
    assert varint(999 << 3) in target.read_bytes()


def test_forks_without_input_layers_keep_the_fields(tmp_path: Path) -> None:
    """In PSPNet number 143 is interp_param."""
    source, target = binary(tmp_path, BINARY[1][1], "pspnet"), tmp_path / "new.caffemodel"
    head = parse_net('input: ["x", "z"] input_dim: [1, 4, 6, 6, 2, 3, 1, 1]')
    source.write_bytes(head.SerializeToString() + source.read_bytes())
    done = CliRunner().invoke(upgrade, [str(source), str(target)])
    assert done.exit_code == 0, done.output
    model = read_caffemodel(target)
    assert (model.guess.dialect, [own.type for own in model.net.layer]) == ("pspnet", ["Interp"])
    assert list(model.net.input) == ["x", "z"]
    assert [list(shape.dim) for shape in model.net.input_shape] == [[1, 4, 6, 6], [2, 3, 1, 1]]
    old, new = (open_net(path, deploy=False).graph for path in (source, target))
    assert (old.shapes, old.inputs) == (new.shapes, new.inputs)
