"""Files that reach outside, claim too much or go in circles, given to each command: an error, and nothing is read."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from repro.cli import run
from tests import models

SECRET = np.arange(4, dtype=np.float32)
BODY = '<ir_version: 8, opset_import: ["" : 17]> net (float[1, 4] x) => (float[1, 4] y) {{ {} }}'
COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "convert": lambda path, _other: ["convert", str(path), str(path.with_name("out.caffemodel"))],
    "verify": lambda path, other: ["verify", str(path), str(other)],
}


def parsed(body: str = "y = Add(x, w)") -> onnx.ModelProto:
    return onnx.parser.parse_model(BODY.format(body))


def outside(location: str) -> onnx.ModelProto:
    """A model whose weights lie in another file."""
    made = parsed()
    tensor = TensorProto(name="w", dims=[4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    made.graph.initializer.append(tensor)
    return made


def with_weights(**fields: object) -> onnx.ModelProto:
    made = parsed()
    made.graph.initializer.append(TensorProto(name="w", **fields))
    return made


def circle() -> onnx.ModelProto:
    made = parsed("y = Relu(x)")
    del made.graph.node[:]
    made.graph.node.extend([helper.make_node("Add", ["x", "b"], ["y"]), helper.make_node("Relu", ["y"], ["b"])])
    return made


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "weights in the folder above": lambda: outside("../secret.bin"),
    "weights by way of a folder": lambda: outside("sub/../../secret.bin"),
    "weights behind a link": lambda: outside("link.bin"),
    "weights that are not there": lambda: outside("nowhere.bin"),
    "2^62 values": lambda: with_weights(dims=[2**62], data_type=TensorProto.FLOAT, raw_data=bytes(16)),
    "2^62 times 4 values": lambda: with_weights(dims=[2**62, 4], data_type=TensorProto.FLOAT, raw_data=bytes(16)),
    "fewer than none": lambda: with_weights(dims=[-4], data_type=TensorProto.FLOAT, raw_data=bytes(16)),
    "text for numbers": lambda: with_weights(dims=[4], data_type=TensorProto.STRING, string_data=[b"a"] * 4),
    "no type": lambda: with_weights(dims=[4], data_type=999, raw_data=bytes(16)),
    "a circle": circle,
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", MODELS)
def test_an_onnx_model_is_refused(name: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.bin").write_bytes(SECRET.tobytes())
    (tmp_path / "in" / "link.bin").symlink_to(tmp_path / "secret.bin")
    path, sound = tmp_path / "in" / "m.onnx", tmp_path / "sound.onnx"
    path.write_bytes(MODELS[name]().SerializeToString())
    sound.write_bytes(parsed("y = Relu(x)").SerializeToString())
    assert run(COMMANDS[command](path, sound)) == 1
    said = capsys.readouterr().err
    assert said.startswith("vggc: error: ")
    assert "internal error" not in said
    assert {each.name for each in path.parent.iterdir()} == {"m.onnx", "link.bin"}


@pytest.mark.parametrize("name", MODELS)
def test_looking_at_an_onnx_model_opens_no_other_file(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.onnx").write_bytes(MODELS[name]().SerializeToString())
    assert run(["inspect", str(tmp_path / "m.onnx")]) in (0, 1)
    assert "internal error" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "about",
    [
        b"[",
        b"[]",
        b'{"preprocessing": 3}',
        b"[" * 100_000,
        b"\xff",
        json.dumps({"caffe_names": json.dumps({"ip.weight": ["ip", 0, "weight", [2**62, 4]]})}).encode(),
        json.dumps({"caffe_names": "[" * 100_000}).encode(),
    ],
)
def test_what_a_state_dict_says_of_itself_is_checked(
    about: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models.write(tmp_path / "m.caffemodel")
    sound, made = tmp_path / "m.pt", tmp_path / "n.pt"
    assert run(["convert", str(tmp_path / "m.caffemodel"), str(sound)]) == 0
    with zipfile.ZipFile(sound) as old, zipfile.ZipFile(made, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, about if member.filename.endswith("vggc.json") else old.read(member))
    capsys.readouterr()
    assert run(["convert", str(made), str(tmp_path / "o.h5"), "--net", str(tmp_path / "m.prototxt")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("vggc: error: ")
    assert "internal error" not in said
    assert not (tmp_path / "o.h5").exists()
