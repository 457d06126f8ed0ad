"""Caffemodels of every generation: bytes that Caffe reads, the prototxt beside them, and what has no older form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

import caffe_compat as cc
from caffe_compat.binding import bind
from caffe_compat.dialects import OURS, dialects
from caffe_compat.errors import ConversionError, Problems, VggcError
from caffe_compat.loading import State, open_net
from caffe_compat.schema import pb
from caffe_compat.tags import Field, Tags
from caffe_compat.textformat import parse
from caffe_compat.upgrade import generation_of, upgrade_net
from caffe_compat.weights import Blob, LayerBlobs, Weights
from converters.convert import Options, prepare
from converters.downgrade import downgrade
from converters.importing.translation import Imported
from converters.model import Model
from converters.streaming import Payloads, Target
from converters.to_caffe import save, write, write_net
from tests import models
from tests.shared import ROOT

UPGRADES = sorted((ROOT / "tests/data/golden/upgrade").glob("*/out.prototxt"))


def written(source: Path, target: Path, generation: str = "V2") -> None:
    """Convert a caffemodel to another."""
    model = prepare(source, Options()).model
    with Payloads() as payloads, Target(target) as file, Target(target.with_suffix(".prototxt")) as text:
        write(model, file, payloads, generation)
        write_net(model, text, generation)
        for each in (file, text):
            each.finish()
            each.rename()


def net(text: str) -> pb.NetParameter:
    return text_format.Parse(text, pb.NetParameter())


INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 9 } } }'


def layer(kind: str, body: str = "") -> pb.NetParameter:
    """A net of one layer behind its input."""
    return net(f'name: "n" {INPUT} layer {{ name: "one" type: "{kind}" bottom: "data" top: "one" {body} }}')


@pytest.mark.parametrize("name", models.NETS)
def test_nothing_changes_on_the_way(name: str, tmp_path: Path) -> None:
    made = models.write(tmp_path / "m.caffemodel", name)
    written(tmp_path / "m.caffemodel", tmp_path / "n.caffemodel")
    whole = pb.NetParameter.FromString((tmp_path / "n.caffemodel").read_bytes())
    assert whole == pb.NetParameter.FromString(models.caffemodel(made))
    for each in whole.layer:
        each.ClearField("blobs")
    assert parse((tmp_path / "n.prototxt").read_text(), pb.NetParameter).message == whole == made.net


@pytest.mark.parametrize("generation", ["V1", "V0"])
def test_an_older_generation_holds_the_same(generation: str, tmp_path: Path) -> None:
    made = models.write(tmp_path / "m.caffemodel")
    written(tmp_path / "m.caffemodel", tmp_path / "n.caffemodel", generation)
    whole = pb.NetParameter.FromString((tmp_path / "n.caffemodel").read_bytes())
    assert generation_of(whole) == generation
    assert generation_of(parse((tmp_path / "n.prototxt").read_text(), pb.NetParameter).message) == generation
    conv = whole.layers[0].layer if generation == "V0" else whole.layers[0]
    blob = conv.blobs[0]
    assert (blob.num, blob.channels, blob.height, blob.width) == (4, 3, 3, 3)
    bias = conv.blobs[1]
    assert (bias.num, bias.channels, bias.height, bias.width) == (1, 1, 1, 4)
    opened = open_net(tmp_path / "n.prototxt", tmp_path / "n.caffemodel")
    assert opened.bound is not None
    for (name, index), values in made.arrays.items():
        node = opened.graph.layer(name)
        assert np.array_equal(opened.bound.arrays[node.params[index]].array, values)


@pytest.mark.parametrize("generation", ["V2", "V1", "V0"])
def test_the_same_model_gives_the_same_bytes_and_outputs(generation: str, tmp_path: Path) -> None:
    import torch

    models.write(tmp_path / "m.caffemodel")
    written(tmp_path / "m.caffemodel", tmp_path / "a.caffemodel", generation)
    written(tmp_path / "m.caffemodel", tmp_path / "b.caffemodel", generation)
    assert (tmp_path / "a.caffemodel").read_bytes() == (tmp_path / "b.caffemodel").read_bytes()
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    want = cc.load(tmp_path / "m.prototxt", tmp_path / "m.caffemodel")({"data": x})["prob"]
    for given in ((tmp_path / "a.prototxt", tmp_path / "a.caffemodel"), (tmp_path / "a.caffemodel",)):
        assert torch.equal(cc.load(*given)({"data": x})["prob"], want)


@pytest.mark.parametrize("path", UPGRADES, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("generation", ["V1", "V0"])
def test_upgrading_gives_the_net_back(path: Path, generation: str) -> None:
    message = parse(path.read_text(), pb.NetParameter).message
    assert isinstance(message, pb.NetParameter)
    message.ClearField("state")
    for each in message.layer:
        each.ClearField("blobs")
    try:
        older = downgrade(message, generation)
    except VggcError as error:
        errors = error.errors if isinstance(error, Problems) else (error,)
        assert all(isinstance(each, ConversionError) and each.where.layer and each.remedy for each in errors)
        return
    assert generation_of(older) == (generation if older.layers else "V2")
    assert older.SerializeToString() != message.SerializeToString() or not message.layer
    back = upgrade_net(older).net
    assert comparable(back) == comparable(message)


def comparable(message: pb.NetParameter) -> pb.NetParameter:
    """What upgrading leaves open: the Input layer's name, and how defaults and multipliers are stated."""
    made = pb.NetParameter()
    made.CopyFrom(message)
    for each in made.layer:
        if each.type == "Input":
            each.name = "input"
        for spec in each.param:
            spec.lr_mult, spec.decay_mult, spec.name = spec.lr_mult, spec.decay_mult, spec.name
        for field, value in list(each.ListFields()):
            if field.name.endswith("_param") and not value.ListFields():
                each.ClearField(field.name)
    return made


def test_upgrade_cases_cover_both_generations() -> None:
    fitting = {"V1": 0, "V0": 0}
    for path in UPGRADES:
        message = parse(path.read_text(), pb.NetParameter).message
        assert isinstance(message, pb.NetParameter)
        for generation in fitting:
            try:
                downgrade(message, generation)
                fitting[generation] += 1
            except VggcError:
                pass
    assert fitting["V1"] > fitting["V0"] > 3


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("kernel_size: 3 pad: 1 stride: 2", "pad: 1 kernel_size: 3 stride: 2"),
        ("kernel_size: 3 kernel_size: 5", "kernel_h: 3 kernel_w: 5"),
        ("kernel_size: 3 dilation: 1 axis: 1", "kernel_size: 3"),
    ],
)
def test_a_convolution_is_said_in_the_words_of_v1(body: str, wanted: str) -> None:
    made = downgrade(layer("Convolution", f"convolution_param {{ num_output: 2 {body} }}"), "V1")
    want = text_format.Parse(f"num_output: 2 {wanted}", pb.ConvolutionParameter())
    assert made.layers[0].convolution_param == want


def test_axis_becomes_the_older_field() -> None:
    made = downgrade(layer("Concat", "concat_param { axis: 2 }"), "V1").layers[0].concat_param
    assert made.concat_dim == 2
    assert not made.HasField("axis")
    made = downgrade(layer("Concat", "concat_param { axis: 2 }"), "V0").layers[0].layer
    assert made.concat_dim == 2


@pytest.mark.parametrize(
    ("generation", "kind", "body", "what"),
    [
        ("V1", "BatchNorm", "", "no layer of type BatchNorm"),
        ("V1", "Convolution", "convolution_param { num_output: 2 kernel_size: 3 dilation: 2 }", r"dilation \[2\]"),
        ("V1", "Pooling", "pooling_param { kernel_size: 3 round_mode: FLOOR }", "round_mode 1"),
        ("V1", "Softmax", "softmax_param { axis: 2 }", "axis 2"),
        ("V1", "Slice", "slice_param { axis: -1 }", "axis -1"),
        ("V1", "Flatten", "flatten_param { axis: 2 }", "no flatten_param"),
        ("V1", "ReLU", "propagate_down: false", "no propagate_down"),
        ("V0", "Eltwise", "", "no layer of type Eltwise"),
        ("V0", "ReLU", "relu_param { negative_slope: 0.1 }", "no relu_param"),
        ("V0", "Convolution", "convolution_param { num_output: 2 kernel_h: 3 kernel_w: 1 }", "no kernel_h"),
        ("V0", "Convolution", "convolution_param { num_output: 2 kernel_size: 3 kernel_size: 1 }", "no kernel_h"),
        ("V0", "InnerProduct", 'param { name: "w" } inner_product_param { num_output: 2 }', "no name"),
        ("V0", "ReLU", "include { phase: TEST }", "no include"),
    ],
)
def test_what_has_no_older_form_is_refused(generation: str, kind: str, body: str, what: str) -> None:
    with pytest.raises(ConversionError, match=what) as error:
        downgrade(layer(kind, body), generation)
    assert error.value.where.layer == "one"
    assert "V2" in error.value.remedy


def test_all_refusals_come_at_once() -> None:
    text = f"""{INPUT} layer {{ name: "a" type: "BatchNorm" bottom: "data" top: "a" }}
        layer {{ name: "b" type: "Scale" bottom: "a" top: "b" }}
        layer {{ name: "c" type: "ReLU" bottom: "b" top: "c" }}"""
    with pytest.raises(Problems) as error:
        downgrade(net(text), "V1")
    assert [each.where.layer for each in error.value.errors] == ["a", "b"]


def test_inputs_of_older_generations_have_four_sizes() -> None:
    text = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 } } }'
    with pytest.raises(ConversionError, match="four sizes"):
        downgrade(net(text), "V1")
    with pytest.raises(ConversionError, match='no generation "V3"'):
        downgrade(net(text), "V3")


def imported(shape: tuple[int, ...] = (2, 3, 3, 3)) -> Imported:
    """A convolution with weights."""
    made = layer("Convolution", f"convolution_param {{ num_output: {shape[0]} kernel_size: 3 bias_term: false }}")
    values = np.arange(np.prod(shape), dtype=np.float32)
    return Imported(made, Weights((LayerBlobs("one", (Blob(shape, values),)),)))


def test_a_net_in_memory_is_saved(tmp_path: Path) -> None:
    paths = save(imported(), tmp_path / "m.caffemodel")
    assert [path.name for path in paths] == ["m.caffemodel", "m.prototxt"]
    found = pb.NetParameter.FromString(paths[0].read_bytes()).layer[1].blobs[0]
    assert list(found.shape.dim) == [2, 3, 3, 3]
    assert list(found.data) == list(range(54))
    with pytest.raises(Problems, match="exists"):
        save(imported(), tmp_path / "m.caffemodel")
    save(imported(), tmp_path / "m.caffemodel", force=True)


def test_a_refused_net_leaves_no_file(tmp_path: Path) -> None:
    made = layer("BatchNorm")
    one = np.ones(3, np.float32)
    blobs = tuple(Blob((size,), one[:size]) for size in (3, 3, 1))
    with pytest.raises(ConversionError, match="BatchNorm"):
        save(Imported(made, Weights((LayerBlobs("one", blobs),))), tmp_path / "m.caffemodel", "V1")
    assert not list(tmp_path.iterdir())


def test_blobs_of_an_older_generation_have_four_sizes(tmp_path: Path) -> None:
    text = f'{INPUT} layer {{ name: "s" type: "Split" bottom: "data" top: "s" }}'
    text += 'layer { name: "one" type: "InnerProduct" bottom: "s" top: "one" inner_product_param { num_output: 2 } }'
    blobs = Blob((2, 243), np.ones(486, np.float32)), Blob((2,), np.ones(2, np.float32))
    save(Imported(net(text), Weights((LayerBlobs("one", blobs),))), tmp_path / "m.caffemodel", "V1")
    blob = pb.NetParameter.FromString((tmp_path / "m.caffemodel").read_bytes()).layers[1].blobs[0]
    assert (blob.num, blob.channels, blob.height, blob.width) == (1, 1, 2, 243)


# -- forks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fork", "kind", "body"),
    [
        ("ssd", "Permute", "permute_param { order: [0, 2, 3, 1] }"),
        ("ssd", "Normalize", "norm_param { across_spatial: false }"),
        ("pspnet", "Interp", "interp_param { height: 8 width: 9 }"),
    ],
)
def test_layers_of_a_fork_have_its_numbers(fork: str, kind: str, body: str, tmp_path: Path) -> None:
    """The fork reads the file, and so do we without being told whose it is; older forks have no Input layers."""
    text = f'''
        layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: [1, 3, 4, 4] }} }} }}
        layer {{ name: "it" type: "{kind}" bottom: "data" top: "it" {body} }}
    '''
    source = tmp_path / "m.prototxt"
    source.write_text(text)
    graph = open_net(source, state=State(dialect=fork)).graph
    blobs = [Blob(shape, np.ones(np.prod(shape, dtype=int), np.float32)) for shape in graph.layer("it").blob_shapes]
    weights = Weights((LayerBlobs("it", tuple(blobs)),))
    model = Model(graph, bind(graph, weights).arrays, weights)
    with Payloads() as payloads, Target(tmp_path / "m.caffemodel") as target:
        write(model, target, payloads)
        target.finish()
        target.rename()
    own = dialects()[fork].fields["LayerParameter"]
    numbers = {part.number for part in _fields_of_last_layer((tmp_path / "m.caffemodel").read_bytes())}
    assert numbers & set(own.values())
    assert not any(number >= OURS for number in numbers)
    opened = open_net(tmp_path / "m.caffemodel")
    assert opened.graph.net.layer[-1] == graph.net.layer[-1]
    assert opened.graph.shapes == graph.shapes


def _fields_of_last_layer(data: bytes) -> list[Field]:
    tags = Tags(data, "m")
    last = [part for part in tags.fields(0, len(data)) if part.number == 100][-1]
    return list(tags.fields(last.value, last.end))
