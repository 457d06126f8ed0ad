"""torchvision's and timm's names for VGG nets, and tables of the user's, in both directions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from safetensors.numpy import load_file, save_file

import caffe_compat as cc
import converters.names
import prototxt
from caffe_compat.binding import bind
from caffe_compat.errors import ConversionError
from caffe_compat.graph import Graph
from caffe_compat.schema import pb
from caffe_compat.weight_files import read_weights
from caffe_compat.weights import Blob, LayerBlobs, Weights
from converters.channels import exchanged
from converters.convert import Options, convert
from converters.extras import Extras
from converters.inspect import inspect
from converters.model import Model
from converters.names import rename
from converters.verify import Options as VerifyOptions
from converters.verify import verify
from tests import models
from tests.converters.engines import check, in_ort

CONFIGURATIONS = {
    "A": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "B": [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "D": [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"],
    "E": [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
}
"""Widths of the convolutions and places of the poolings, as torchvision lists them for vgg11, 13, 16 and 19."""

LRN = 1e-4
"""How far ONNX Runtime's LRN is from ours on large values, relative to the largest."""


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


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_keys_are_those_of_timm(name: str) -> None:
    """timm's classifier: a convolution over 7 x 7 and one over 1 x 1, `pre_logits`, then a linear layer, `head.fc`."""
    features = {k: v for k, v in expected(CONFIGURATIONS[name]).items() if k.startswith("features")}
    dense = {"pre_logits.fc1": (4096, 512, 7, 7), "pre_logits.fc2": (4096, 4096, 1, 1), "head.fc": (1000, 4096)}
    want = features | {f"{k}.weight": v for k, v in dense.items()} | {f"{k}.bias": v[:1] for k, v in dense.items()}
    renamed = rename(model(net(name)), "timm")
    assert {item.name: item.shape for item in renamed.blobs()} == want


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


# -- both directions -------------------------------------------------------------------------------------------


def feed(blob: str = "data") -> dict[str, np.ndarray]:
    return {blob: np.random.default_rng(0).normal(0, 50, (1, 3, 224, 224)).astype(np.float32)}


@pytest.mark.parametrize("scheme", ["torchvision", "timm"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_come_back_under_caffes_names(scheme: str, suffix: str, vgg: Path, tmp_path: Path) -> None:
    there, back = tmp_path / f"there.{suffix}", tmp_path / "back.caffemodel"
    convert(vgg, [there, tmp_path / "a.prototxt"], Options(names=scheme))
    state = (
        torch.load(there, weights_only=True)
        if suffix == "pt"
        else {k: torch.tensor(v) for k, v in load_file(there).items()}
    )
    plain = tmp_path / "plain.pt"
    torch.save(dict(state), plain)  # a file that says nothing of Caffe
    report = convert(plain, [back], Options(net=tmp_path / "a.prototxt", names=scheme, force=True))
    assert any(f"under {scheme} names" in note and "RGB" in note for note in report.notes)
    assert same_parameters(vgg, back)


def same_parameters(one: Path, other: Path) -> bool:
    """Whether two models have the same parameters, bit by bit."""
    found = [
        {(x.name, i): b.values.tobytes() for x in read_weights(p) for i, b in enumerate(x.blobs)} for p in (one, other)
    ]
    return found[0] == found[1]


@pytest.mark.parametrize("scheme", ["torchvision", "timm"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors", "onnx"])
def test_a_renamed_file_stays_a_whole_model(scheme: str, suffix: str, vgg: Path, tmp_path: Path) -> None:
    """It tells which layers its weights belong to, so it is read, inspected and verified as any other."""
    made = tmp_path / f"a.{suffix}"
    report = convert(vgg, [made], Options(names=scheme, extras=Extras(verify=True)))
    (result,) = report.results
    assert result.verified is not None
    assert result.verified.agrees
    if suffix == "onnx":
        found = verify(vgg, made, VerifyOptions(run=False))
        assert found.equal_params == len(found.params) == 22
        return
    assert same_parameters(vgg, made)
    plain, again = tmp_path / "plain.pt", tmp_path / "again.pt"
    convert(vgg, [plain])
    convert(made, [again], Options(net=vgg))
    assert again.read_bytes() == plain.read_bytes()


def test_a_file_that_lacks_tensors_is_refused(vgg: Path, tmp_path: Path) -> None:
    convert(vgg, [tmp_path / "a.pt", tmp_path / "a.prototxt"], Options(names="torchvision"))
    state = dict(torch.load(tmp_path / "a.pt", weights_only=True))
    del state["features.3.weight"]
    torch.save(state, tmp_path / "b.pt")
    with pytest.raises(ConversionError, match=r"no tensors called features\.3\.weight"):
        convert(tmp_path / "b.pt", [tmp_path / "b.caffemodel"], Options(net=vgg, names="torchvision"))
    state["features.3.weight"] = torch.ones(1, 2, 3, 4)
    torch.save(state, tmp_path / "b.pt")
    with pytest.raises(cc.VggcError, match=r'"features\.3\.weight" is 1 x 2 x 3 x 4; 2 x 2 x 3 x 3 is needed'):
        convert(tmp_path / "b.pt", [tmp_path / "b.caffemodel"], Options(net=vgg, names="torchvision"))


# -- blue and red ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "onnx", "h5", "caffemodel"])
def test_exchanged_channels_give_the_same_for_rgb(suffix: str, tmp_path: Path) -> None:
    source, made = tmp_path / "m.caffemodel", tmp_path / f"out.{suffix}"
    models.write(source)
    report = convert(source, [made], Options(force=True, extras=Extras(rgb=True, verify=True, tolerance=LRN)))
    assert all(each.verified is None or each.verified.agrees for each in report.results)
    assert report.results[0].verified is not None
    assert any("takes RGB now" in note for note in report.notes)
    net = source.with_suffix(".prototxt")
    x = np.random.default_rng(0).normal(0, 1, (2, 3, 12, 12)).astype(np.float32)
    want = cc.load(net, source)({"data": torch.from_numpy(x)})["prob"].detach().numpy()
    turned = np.ascontiguousarray(x[:, ::-1])
    if suffix == "onnx":
        got = in_ort(made, {"data": turned})["prob"]
    else:
        got = cc.load(net, made)({"data": torch.from_numpy(turned)})["prob"].detach().numpy()
    check({"prob": got}, {"prob": want})


def test_exchanging_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source, once, twice = tmp_path / "m.caffemodel", tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    models.write(source)
    convert(source, [once], Options(extras=Extras(rgb=True)))
    convert(once, [twice], Options(extras=Extras(rgb=True)))
    assert same_parameters(source, twice)
    found = verify(source, once)
    assert found.agrees
    assert any("blue and red exchanged" in note for note in found.notes)
    assert verify(source, twice).notes == ()


def test_preprocessing_follows_the_channels(vgg: Path, tmp_path: Path) -> None:
    text = vgg_net(vgg)
    text.layer[0].CopyFrom(
        text_format.Parse(
            """name: "data" type: "Data" top: "data" top: "label"
        transform_param { mean_value: 104 mean_value: 117 mean_value: 123 crop_size: 224 }
        data_param { source: "x" batch_size: 1 }""",
            pb.LayerParameter(),
        )
    )
    (tmp_path / "train.prototxt").write_text(text_format.MessageToString(text))
    made = tmp_path / "a.safetensors"
    options = Options(net=tmp_path / "train.prototxt", names="torchvision", extras=Extras(rgb=True))
    report = convert(vgg, [made], options)
    assert inspect(made).preprocessing == {"channel_order": "RGB", "crop_size": 224, "mean_value": [123, 117, 104]}
    assert "takes RGB now" in report.notes[-1]


def vgg_net(path: Path) -> pb.NetParameter:
    found = cc.read_net(path)
    for layer in found.layer:
        layer.ClearField("blobs")
    return found


@pytest.mark.parametrize(
    ("layers", "what"),
    [
        ('layer { name: "n" type: "BatchNorm" bottom: "data" top: "n" }', "BatchNorm layer takes data"),
        (
            'layer { name: "c" type: "Convolution" bottom: "data" top: "c" '
            "convolution_param { num_output: 3 kernel_size: 1 group: 3 } }",
            "not a plain convolution",
        ),
    ],
)
def test_channels_that_cannot_be_exchanged(layers: str, what: str) -> None:
    head = 'layer { name: "i" type: "Input" top: "data" input_param { shape { dim: [1, 3, 4, 4] } } }'
    with pytest.raises(ConversionError, match=what):
        exchanged(model(text_format.Parse(head + layers, pb.NetParameter())))


def test_only_images_of_three_channels(tmp_path: Path) -> None:
    models.write(tmp_path / "m.caffemodel", "grouped")
    with pytest.raises(ConversionError, match="0 of the net's inputs are images"):
        convert(tmp_path / "m.caffemodel", [tmp_path / "m.pt"], Options(extras=Extras(rgb=True)))


# -- tables of the user's --------------------------------------------------------------------------------------


def table(path: Path, **names: str) -> Path:
    path.write_text(json.dumps(names))
    return path


def test_a_table_renames_any_net_and_back(tmp_path: Path) -> None:
    source, there, back = tmp_path / "m.caffemodel", tmp_path / "there.pt", tmp_path / "back.caffemodel"
    models.write(source)
    names = table(tmp_path / "map.json", **{"conv1": "stem.0", "ip.weight": "head.kernel"})
    convert(source, [there], Options(extras=Extras(rename=names)))
    state = torch.load(there, weights_only=True)
    assert list(state) == ["stem.0.weight", "stem.0.bias", "head.kernel", "ip.bias"]
    torch.save(dict(state), there)
    options = Options(net=source.with_suffix(".prototxt"), force=True, extras=Extras(rename=names))
    report = convert(there, [back], options)
    assert same_parameters(source, back)
    assert "the weights were found under the names of the table" in report.notes


def test_layers_of_a_caffemodel_are_renamed(tmp_path: Path) -> None:
    """A net whose layers were renamed takes the old weights."""
    models.write(tmp_path / "m.caffemodel")
    text = (tmp_path / "m.prototxt").read_text().replace('"conv1"', '"stem"')
    (tmp_path / "new.prototxt").write_text(text)
    names = table(tmp_path / "map.json", stem="conv1")
    options = Options(net=tmp_path / "new.prototxt", extras=Extras(rename=names))
    convert(tmp_path / "m.caffemodel", [tmp_path / "new.safetensors"], options)
    want = models.made().arrays["conv1", 0]
    np.testing.assert_array_equal(load_file(tmp_path / "new.safetensors")["stem.weight"], want)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"conv9": "a"}', "no parameters called conv9"),
        ('{"relu1": "a"}', "no parameters called relu1"),
        ('{"conv1": "ip"}', r"two parameter blobs would be called ip\.weight"),
        ("[1]", "no table of names"),
        ('{"conv1": 3}', "no table of names"),
        ("{", "not JSON"),
        ("[" * 100000, "not JSON"),
    ],
)
def test_tables_that_do_not_fit(text: str, what: str, tmp_path: Path) -> None:
    models.write(tmp_path / "m.caffemodel")
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(cc.VggcError, match=what):
        convert(tmp_path / "m.caffemodel", [tmp_path / "m.pt"], Options(extras=Extras(rename=tmp_path / "map.json")))
    assert not (tmp_path / "m.pt").exists()


def test_a_table_and_a_scheme_are_too_much(vgg: Path, tmp_path: Path) -> None:
    names = table(tmp_path / "map.json", conv1_1="a")
    with pytest.raises(ConversionError, match="do not go together"):
        convert(vgg, [tmp_path / "m.pt"], Options(names="timm", extras=Extras(rename=names)))


@pytest.mark.parametrize(
    "entry",
    [
        "[]",
        "3",
        '{"a": 1}',
        '{"ip.weight": ["ip", -1, "weight", [2, 2]]}',
        '{"ip.weight": ["ip", 0, "weight", [9, 9]]}',
        '{"ip.weight": [1, 0, "weight", [2, 2]]}',
        '{"ip.weight": ["ip", 0, "w", [4611686018427387904, 4]]}',
        '{"a.b": ["ip", 0, "w", [1]], "c.d": ["ip", 0, "w", [1]]}',
    ],
)
def test_names_that_a_file_states_are_checked(entry: str, tmp_path: Path) -> None:
    save_file({"ip.weight": np.ones((2, 2), np.float32)}, tmp_path / "m.safetensors", {"caffe_names": entry})
    with pytest.raises(cc.VggcError, match=r"caffe_names|shape stated"):
        read_weights(tmp_path / "m.safetensors")
