"""Every writer and every reader: values stay as they are, bit by bit, whatever way they take."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file

import caffe_compat as cc
from caffe_compat.graph import Graph
from caffe_compat.weight_files import read_weights
from converters.convert import Options, convert
from tests import models
from tests.converters.engines import in_torch, inputs

WEIGHTS = ("safetensors", "pt", "h5")
"""Formats that are read as weights."""


def names(name: str) -> dict[str, models.Key]:
    """The name of each parameter blob in a target."""
    graph = Graph.from_net(models.made(name).net)
    types = {node.layer.name: node.layer for node in graph.nodes}
    return {f"{layer}.{types[layer].BLOBS[blob]}": (layer, blob) for layer, blob in models.made(name).arrays}


def stored(path: Path) -> dict[str, np.ndarray]:
    """What another library reads from a file: name -> values."""
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    if path.suffix == ".pt":
        return {name: tensor.numpy() for name, tensor in torch.load(path, weights_only=True).items()}
    if path.suffix == ".onnx":
        return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    raise AssertionError(path)


@pytest.fixture(params=models.NETS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".onnx"])
@pytest.mark.parametrize("encoding", models.ENCODINGS)
def test_other_libraries_read_the_same_values(name: str, suffix: str, encoding: str, tmp_path: Path) -> None:
    source, target = tmp_path / "m.caffemodel", tmp_path / f"out{suffix}"
    want = models.write(source, name, encoding=encoding).arrays
    convert(source, [target])
    found = stored(target)
    own = names(name)
    if suffix != ".onnx":
        assert list(found) == list(own) if suffix == ".pt" else found.keys() == own.keys()
    for tensor, key in own.items():
        values = want[key].astype(np.float16).astype(np.float32) if encoding == "half" else want[key]
        if suffix == ".onnx" and tensor not in found:
            continue  # combined with others
        assert found[tensor].dtype == np.float32
        np.testing.assert_array_equal(found[tensor], values, strict=True)


def test_hdf5_has_the_layout_of_caffe(name: str, tmp_path: Path) -> None:
    source, target = tmp_path / "m.caffemodel", tmp_path / "out.h5"
    want = models.write(source, name)
    convert(source, [target])
    with h5py.File(target) as file:
        assert list(file) == ["data"]
        for layer in want.net.layer:
            assert isinstance(file["data"][layer.name], h5py.Group)
        for (layer, blob), values in want.arrays.items():
            np.testing.assert_array_equal(file[f"data/{layer}/{blob}"][()], values, strict=True)


def test_shared_blobs_come_once_in_hdf5(tmp_path: Path) -> None:
    models.write(tmp_path / "m.caffemodel", "shared")
    convert(tmp_path / "m.caffemodel", [tmp_path / "m.h5"])
    with h5py.File(tmp_path / "m.h5") as file:
        assert list(file["data/one"]) == ["0", "1"]
        assert list(file["data/two"]) == []


@pytest.mark.parametrize("first", WEIGHTS)
def test_a_detour_changes_no_byte(name: str, first: str, tmp_path: Path) -> None:
    """caffemodel -> X -> every format gives what caffemodel -> every format gives."""
    source = tmp_path / "m.caffemodel"
    models.write(source, name)
    straight = [tmp_path / f"straight.{suffix}" for suffix in models.FORMATS]
    convert(source, straight)
    detour = [tmp_path / f"detour.{suffix}" for suffix in models.FORMATS]
    convert(tmp_path / f"straight.{first}", detour, Options(net=source.with_suffix(".prototxt")))
    for one, other in zip(straight, detour, strict=True):
        assert one.read_bytes() == other.read_bytes(), other.name


def test_a_safetensors_file_is_a_whole_model(name: str, tmp_path: Path) -> None:
    source = tmp_path / "m.caffemodel"
    models.write(source, name)
    first, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    convert(source, [first, tmp_path / "a.onnx"])
    report = convert(first, [again, tmp_path / "b.onnx"])
    assert report.notes == ()
    assert first.read_bytes() == again.read_bytes()
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("suffix", WEIGHTS)
def test_a_net_computes_the_same_with_converted_weights(name: str, suffix: str, tmp_path: Path) -> None:
    source = tmp_path / "m.caffemodel"
    models.write(source, name)
    target = tmp_path / f"m.{suffix}"
    convert(source, [target, tmp_path / "alone.safetensors"], Options(force=True))
    net = source.with_suffix(".prototxt")
    arrays = inputs(cc.load(net).inputs)
    with torch.no_grad():
        feed = {blob: torch.from_numpy(array) for blob, array in arrays.items()}
        tops = [cc.load(net, weights)(feed) for weights in (source, target)]
    for blob, top in tops[0].items():
        assert torch.equal(tops[1][blob], top)
        np.testing.assert_array_equal(in_torch(tmp_path / "alone.safetensors", arrays)[blob], top.numpy())


@pytest.mark.parametrize("generation", models.GENERATIONS)
def test_every_generation_gives_the_same_model(generation: str, tmp_path: Path) -> None:
    found = {}
    for each in ("V2", generation):
        models.write(tmp_path / f"{each}.caffemodel", generation=each)
        targets = [tmp_path / f"{each}.onnx", tmp_path / f"{each}.pt"]
        assert convert(tmp_path / f"{each}.caffemodel", targets, Options(force=True)).generation == each
        found[each] = [target.read_bytes() for target in targets]
    assert found["V2"] == found[generation]


# -- weights without a net ---------------------------------------------------------------------------------

ALONE = Options(weights_only=True)


@pytest.mark.parametrize("suffix", WEIGHTS)
@pytest.mark.parametrize("again", WEIGHTS)
def test_weights_alone_keep_names_places_and_values(name: str, suffix: str, again: str, tmp_path: Path) -> None:
    source = tmp_path / "m.caffemodel"
    models.write(source, name)
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{again}"
    convert(source, [first], ALONE)
    report = convert(first, [second], ALONE)
    assert (report.layers, report.generation) == (None, "")
    want = {layer.name: layer.blobs for layer in read_weights(source) if layer.blobs}
    found = {layer.name: layer for layer in read_weights(second) if layer.blobs}
    assert found.keys() == want.keys()
    for layer, blobs in want.items():
        for one, other in zip(found[layer].blobs, blobs, strict=True):
            np.testing.assert_array_equal(one.array, other.array, strict=True)


@pytest.mark.parametrize(("encoding", "dtype"), [("double", np.float64), ("half", np.float16)])
@pytest.mark.parametrize("suffix", WEIGHTS)
def test_weights_alone_keep_their_number_type(encoding: str, dtype: type, suffix: str, tmp_path: Path) -> None:
    source = tmp_path / "m.caffemodel"
    models.write(source, encoding=encoding)
    convert(source, [tmp_path / f"a.{suffix}"], ALONE)
    blobs = [blob for layer in read_weights(tmp_path / f"a.{suffix}") for blob in layer.blobs]
    assert {blob.values.dtype for blob in blobs} == {np.dtype(dtype)}


def test_weights_alone_of_a_net_that_nobody_knows(tmp_path: Path) -> None:
    model = models.made()
    for layer in model.net.layer:
        layer.type = "Frobnicate" if layer.type == "InnerProduct" else layer.type
    source = tmp_path / "m.caffemodel"
    source.write_bytes(
        models.caffemodel(models.Made(models.made().net, model.arrays)).replace(b"InnerProduct", b"FrobnicatePx")
    )
    with pytest.raises(cc.VggcError, match="FrobnicatePx"):
        convert(source, [tmp_path / "a.safetensors"])
    convert(source, [tmp_path / "a.safetensors"], ALONE)
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["ip.0"], model.arrays["ip", 0])


def test_a_blob_without_a_place_is_not_guessed(tmp_path: Path) -> None:
    torch.save({"ip.bias": torch.ones(3)}, tmp_path / "w.pt")
    convert(tmp_path / "w.pt", [tmp_path / "w.safetensors"], ALONE)
    with pytest.raises(cc.VggcError, match=r"place of ip\.bias"):
        convert(tmp_path / "w.pt", [tmp_path / "w.h5"], ALONE)
    assert not (tmp_path / "w.h5").exists()
