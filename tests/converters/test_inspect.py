"""`inspect`: every format, open sizes, what is carried along, problems."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from onnx import helper, numpy_helper
from safetensors.numpy import save_file

import converters.onnx
from caffe_compat.errors import BinaryError, FormatError
from caffe_compat.schema import pb
from converters.convert import Options, convert
from converters.inspect import Inspection, inspect
from repro.cli import run
from tests import models

DATA = """
    name: "data" type: "Data" top: "data" include { phase: TEST } data_param { source: "x" batch_size: 2 }
    transform_param { mean_value: 104 mean_value: 117 mean_value: 123 crop_size: 12 }
"""
PREPARED = {"channel_order": "BGR", "mean_value": [104.0, 117.0, 123.0], "crop_size": 12}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One model in every format, with preprocessing from its training net."""
    net = models.write(tmp_path / "m.caffemodel").net
    net.layer[0].CopyFrom(text_format.Parse(DATA, pb.LayerParameter()))
    (tmp_path / "train_val.prototxt").write_text(text_format.MessageToString(net))
    targets = [tmp_path / f"m.{suffix}" for suffix in ("safetensors", "onnx", "h5", "pt")]
    convert(tmp_path / "m.caffemodel", targets, Options(net=tmp_path / "train_val.prototxt"))
    return tmp_path


def parameters() -> int:
    return sum(array.size for array in models.made().arrays.values())


@pytest.mark.parametrize("suffix", ["safetensors", "onnx", "h5", "pt", "caffemodel", "prototxt"])
def test_every_format(suffix: str, folder: Path) -> None:
    found = inspect(folder / f"m.{suffix}")
    assert found.format == {"h5": "hdf5"}.get(suffix, suffix)
    assert found.parameters == parameters()
    assert found.bytes == (folder / f"m.{suffix}").stat().st_size
    assert not found.problems
    by_name = {row.name: row for row in found.rows}
    assert ("relu1" in by_name) == (suffix not in ("h5", "pt"))


def test_content_decides_not_the_name(folder: Path) -> None:
    for suffix, kind in (("safetensors", "safetensors"), ("h5", "hdf5"), ("pt", "pt"), ("caffemodel", "caffemodel")):
        (folder / "renamed").write_bytes((folder / f"m.{suffix}").read_bytes())
        assert inspect(folder / "renamed").format == kind


def test_open_sizes_have_their_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(folder / "m.onnx")
    assert found.inputs == {"data": ("N", 3, 12, 12)}
    assert found.outputs == {"prob": ("N", 5)}
    assert run(["inspect", str(folder / "m.onnx")]) == 0
    out = capsys.readouterr().out
    assert "inputs: data Nx3x12x12\n" in out
    assert "outputs: prob Nx5\n" in out


@pytest.mark.parametrize("suffix", ["safetensors", "onnx"])
def test_results_say_how_images_are_prepared(suffix: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(folder / f"m.{suffix}")
    assert found.preprocessing == PREPARED
    assert found.metadata["caffe_profile"] == "bvlc"
    assert run(["inspect", str(folder / f"m.{suffix}")]) == 0
    line = "preprocessing: channel_order BGR, crop_size 12, mean_value [104.0, 117.0, 123.0]\n"
    assert line in capsys.readouterr().out


def test_preparation_is_passed_on_and_found_in_the_caffemodel(folder: Path, tmp_path: Path) -> None:
    convert(folder / "m.safetensors", [tmp_path / "again.onnx"])
    assert inspect(tmp_path / "again.onnx").preprocessing == PREPARED
    assert (tmp_path / "again.onnx").read_bytes() == (folder / "m.onnx").read_bytes()
    trained = pb.NetParameter.FromString((folder / "m.caffemodel").read_bytes())
    trained.layer[0].CopyFrom(text_format.Parse(DATA, pb.LayerParameter()))
    (folder / "trained.caffemodel").write_bytes(trained.SerializeToString())
    convert(folder / "trained.caffemodel", [tmp_path / "by_deploy.onnx"], Options(net=folder / "m.prototxt"))
    assert inspect(tmp_path / "by_deploy.onnx").preprocessing == PREPARED
    assert inspect(folder / "train_val.prototxt").preprocessing == PREPARED


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in ("onnx", "h5", "caffemodel"):
        assert run(["inspect", "--json", str(folder / f"m.{suffix}")]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found.keys() == set(Inspection.__dataclass_fields__)
        assert found["parameters"] == parameters()


def test_problems_are_all_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(models.NETS["plain"].replace("LRN", "Frobnicate").replace("kernel_size: 3 pad: 1", "pad: 1"))
    assert run(["inspect", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out.count("problem: ") == 2
    assert err == f"vggc: error: {path}: 2 problem(s), listed above\n"


def test_weights_without_a_net(tmp_path: Path) -> None:
    save_file({"ip.weight": models.made().arrays["ip", 0]}, tmp_path / "w.safetensors")
    found = inspect(tmp_path / "w.safetensors")
    assert (found.format, found.generation, [row.name for row in found.rows]) == ("safetensors", "", ["ip"])


def test_metadata_that_is_none_is_refused(tmp_path: Path) -> None:
    save_file({"ip.0": models.made().arrays["ip", 0]}, tmp_path / "w.safetensors", {"preprocessing": "[1]"})
    with pytest.raises(FormatError, match="no JSON table"):
        inspect(tmp_path / "w.safetensors")


# -- ONNX files of others ----------------------------------------------------------------------------------


def other(tmp_path: Path) -> Path:
    """A model with an open size without a name, a size that is 0 and constants of integers."""
    shape = numpy_helper.from_array(models.np.array([0, -1]), "shape")
    weight = numpy_helper.from_array(models.np.ones((3, 2), models.np.float16), "w")
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"]), helper.make_node("MatMul", ["y", "w"], ["z"])]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "other",
        [info("x", onnx.TensorProto.FLOAT16, [None, 3]), info("e", onnx.TensorProto.FLOAT16, [0])],
        [info("z", onnx.TensorProto.FLOAT16, ["batch", 2])],
        [shape, weight],
    )
    onnx.save(helper.make_model(graph), tmp_path / "other.onnx")
    return tmp_path / "other.onnx"


def test_models_of_others(tmp_path: Path) -> None:
    found = inspect(other(tmp_path))
    assert found.inputs == {"x": ("?", 3), "e": (0,)}
    assert found.outputs == {"z": ("batch", 2)}
    assert found.parameters == 6, "shapes are no parameters"
    assert found.preprocessing == {}


def test_weights_beside_a_model_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converters.onnx, "LARGEST", 1000)
    convert(folder / "m.caffemodel", [folder / "e.onnx"])
    (data,) = folder.glob("e.onnx.*.data")
    assert f"weights are in {data.name}" in inspect(folder / "e.onnx").notes
    data.unlink()
    assert inspect(folder / "e.onnx").parameters == parameters()


@pytest.mark.parametrize("data", [b"", b"text\n", bytes(50), b"\x0a\xff", b"\x89HDF\r\n\x1a\n", b"\x08\x07"])
def test_files_that_are_no_onnx(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(BinaryError):
        inspect(tmp_path / "m.onnx")


def test_names_that_are_no_text_are_refused(folder: Path) -> None:
    data = (folder / "m.onnx").read_bytes().replace(b"relu1", b"\xff\xfe\xfd\xfc\xfb")
    (folder / "m.onnx").write_bytes(data)
    with pytest.raises(BinaryError, match="not UTF-8"):
        inspect(folder / "m.onnx")
