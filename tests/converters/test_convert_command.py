"""`vggc convert`: what it prints, as text and as JSON, which targets it writes, what --strict refuses."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from google.protobuf import text_format

import converters.commands
import converters.onnx
from caffe_compat.schema import pb
from converters.convert import FORMATS, Report, Result
from repro.cli import run
from tests import models

SECONDS = re.compile(r"\d+\.\d\d s$", re.MULTILINE)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with one model of generation V1."""
    monkeypatch.chdir(tmp_path)
    models.write(tmp_path / "m.caffemodel", generation="V1")
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    """What a successful run prints, or the messages of one that fails."""
    assert run(["convert", *args]) == code
    out, err = capsys.readouterr()
    assert (err if code == 0 else out) == ""
    return out if code == 0 else err


def sha256(name: str) -> str:
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


def test_summary(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "m.caffemodel", "a.safetensors", "b.onnx")
    assert SECONDS.sub("T", out) == (
        f"""m.caffemodel: caffemodel V1, 7 layers, 837 parameters
  {Path("m.caffemodel").stat().st_size:,} bytes, sha256 {sha256("m.caffemodel")}
  note: upgraded 7 V1 layer(s) to V2
  note: replaced the input fields by an Input layer (data 2 x 3 x 12 x 12)
wrote a.safetensors (safetensors) in T
  {Path("a.safetensors").stat().st_size:,} bytes, sha256 {sha256("a.safetensors")}
  weights: 4 parameter blobs are bit-equal
wrote b.onnx (onnx) in T
  {Path("b.onnx").stat().st_size:,} bytes, sha256 {sha256("b.onnx")}
  weights: 4 parameter blobs are bit-equal
done in T
"""
    )


def test_summary_without_a_net(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "m.caffemodel", "a.pt", "--weights-only")
    assert out.startswith("m.caffemodel: caffemodel, net not built, 837 parameters\n")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "m.caffemodel", "a.h5", "--json"))
    assert list(found) == [field.name for field in fields(Report)]
    assert list(found["results"][0]) == [field.name for field in fields(Result)]
    seconds = found.pop("seconds"), found["results"][0].pop("seconds")
    assert all(isinstance(number, float) for number in seconds)
    assert found == {
        "source": "m.caffemodel",
        "source_bytes": Path("m.caffemodel").stat().st_size,
        "source_sha256": sha256("m.caffemodel"),
        "format": "caffemodel",
        "generation": "V1",
        "layers": 7,
        "parameters": 837,
        "notes": [
            "upgraded 7 V1 layer(s) to V2",
            "replaced the input fields by an Input layer (data 2 x 3 x 12 x 12)",
        ],
        "results": [
            {
                "path": "a.h5",
                "format": "h5",
                "bytes": Path("a.h5").stat().st_size,
                "sha256": sha256("a.h5"),
                "equal_blobs": 4,
                "verified": None,
            },
        ],
        "cards": [],
    }


def test_names_of_layers_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    model = models.made()
    text = text_format.MessageToString(model.net).replace('"conv1"', r'"\033]0;evil\007"').replace('"ip"', r'"a\nb"')
    evil = text_format.Parse(text, pb.NetParameter())
    made = models.with_weights(evil)
    Path("evil.caffemodel").write_bytes(models.caffemodel(made, encoding="double"))
    for args in (["convert", "evil.caffemodel", "evil.h5"], ["inspect", "evil.caffemodel"]):
        assert run(args) == 0
        out = capsys.readouterr().out
        assert "\\x1b]0;evil\\x07" in out
        assert all(line.isprintable() for line in out.splitlines())
    assert run(["convert", "evil.caffemodel", "evil.pt", "--strict"]) == 1
    assert all(line.isprintable() for line in capsys.readouterr().err.splitlines())


def test_external_data_is_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converters.onnx, "LARGEST", 1000)
    out = printed(capsys, "m.caffemodel", "m.onnx")
    (data,) = Path.cwd().glob("*.data")
    assert f"wrote {data.name} (onnx data) in " in out
    assert f"  {data.stat().st_size:,} bytes, sha256 {sha256(data.name)}" in out


# -- targets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "stem"),
    [("m.caffemodel", "m"), ("a.b.caffemodel", "a.b"), ("VGG_iter_5", "VGG_iter_5"), ("m.caffemodel.h5", "m")],
)
def test_results_stand_beside_the_source(source: str, stem: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path("m.caffemodel").read_bytes()
    Path("folder").mkdir()
    Path("folder", source).write_bytes(data)
    printed(capsys, f"folder/{source}")
    others = [name for name in FORMATS if name not in ("safetensors", "caffemodel", "py")]
    printed(capsys, f"folder/{source}", *(f"--to={name}" for name in others))
    want = {source, *(f"{stem}.{name}" for name in ("safetensors", *others))}
    assert {path.name for path in Path("folder").iterdir()} == want


def test_suffixes_in_any_case(capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "m.caffemodel", "A.ONNX", "b.Pth", "c.HDF5")
    assert printed(capsys, "m.caffemodel", "d.txt", code=1).count('suffix ".txt"; use one of .safetensors') == 1


def test_every_bad_target_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    err = printed(capsys, "m.caffemodel", "a.txt", "none/b.onnx", "m.caffemodel", "c.pt", "./c.pt", code=1)
    assert [line.split(";")[0] for line in err.splitlines()] == [
        'vggc: error: a.txt: no format goes with the suffix ".txt"',
        "vggc: error: none: there is no such folder",
        "vggc: error: m.caffemodel: the target is also read from",
        "vggc: error: m.prototxt: the target exists",
        "vggc: error: c.pt: two targets are the same file",
        "vggc: 5 errors",
    ]


def test_a_net_without_weights(capsys: pytest.CaptureFixture[str]) -> None:
    err = printed(capsys, "m.prototxt", "m.onnx", code=1)
    assert err == (
        "vggc: error: m.prototxt: this is text, without weights; give the weights (.caffemodel) as SRC, "
        "and this file with --net if it is their net\n"
    )


def test_weights_without_a_net(capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "m.caffemodel", "m.h5", "m.pt")
    for source in ("m.h5", "m.pt"):
        assert "--net" in printed(capsys, source, "again.onnx", code=1)
        printed(capsys, source, f"{source}.onnx", "--net", "m.prototxt")
    assert "--weights-only" in printed(capsys, "m.h5", "x.pt", "--weights-only", "--net", "m.prototxt", code=1)


@pytest.mark.parametrize("value", ["data=1,x", "data=", "1,3,"])
def test_shapes_that_are_no_shapes_are_wrong_usage(value: str) -> None:
    assert run(["convert", "m.caffemodel", "m.onnx", "--input-shape", value]) == 2


def test_an_input_shape(capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "m.caffemodel", "m.onnx", "--input-shape", "data=5,3,12,12", "--static-batch")
    assert run(["inspect", "m.onnx"]) == 0
    assert "inputs: data 5x3x12x12" in capsys.readouterr().out
    err = printed(capsys, "m.caffemodel", "n.onnx", "--input-shape", "image=5,3,12,12", code=1)
    assert "no input blob called image; inputs: data" in err


# -- strict ------------------------------------------------------------------------------------------------


def test_strict_takes_what_caffes_own_upgrade_changes(capsys: pytest.CaptureFixture[str]) -> None:
    assert "note: upgraded" in printed(capsys, "m.caffemodel", "m.pt", "--strict")


@pytest.mark.parametrize("encoding", ["double", "half"])
def test_strict_refuses_casts(encoding: str, capsys: pytest.CaptureFixture[str]) -> None:
    models.write(Path("m.caffemodel"), encoding=encoding)
    assert "note: converted to float32: conv1[0]: float" in printed(capsys, "m.caffemodel", "m.pt")
    err = printed(capsys, "m.caffemodel", "n.pt", "--strict", code=1)
    assert "converted to float32: conv1[0]: float" in err
    assert err.endswith("leave out --strict to accept it\n")
    assert not Path("n.pt").exists()


def test_weights_that_the_net_has_not_are_lost(capsys: pytest.CaptureFixture[str]) -> None:
    Path("short.prototxt").write_text(models.NETS["plain"][: models.NETS["plain"].index('layer { name: "ip"')])
    out = printed(capsys, "m.caffemodel", "m.pt", "--net", "short.prototxt")
    note = "the net has no layer called ip: their weights are not used"
    assert f"  note: {note}\n" in out
    err = printed(capsys, "m.caffemodel", "n.pt", "--net", "short.prototxt", "--strict", code=1)
    assert err == f"vggc: error: m.caffemodel: {note}; leave out --strict to accept it\n"


def test_strict_lists_all_that_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    loss = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }'
    net = text_format.Parse(models.NETS["plain"] + loss, pb.NetParameter())
    net.layer[0].top.append("label")
    net.layer[0].input_param.shape.add(dim=[2])
    Path("m.caffemodel").write_bytes(models.caffemodel(models.Made(net, models.made().arrays)))
    err = printed(capsys, "m.caffemodel", "n.pt", "--strict", code=1)
    assert [line.split(": ")[3].split(" of ")[0] for line in err.splitlines()[:-1]] == [
        'dropped blob "label"',
        'dropped layer "loss" (SoftmaxWithLoss)',
    ]
    assert err.splitlines()[-1] == "vggc: 2 errors"


def test_gradients_in_the_file_are_noted(capsys: pytest.CaptureFixture[str]) -> None:
    net = pb.NetParameter.FromString(models.caffemodel(models.made()))
    net.layer[1].blobs[0].diff.extend([1.0] * 108)
    Path("m.caffemodel").write_bytes(net.SerializeToString())
    note = "gradients of 1 blob(s), 432 bytes, are in the file and were not read"
    for extra in ([], ["--net", "m.prototxt"], ["--weights-only"]):
        assert note in printed(capsys, "m.caffemodel", "m.pt", "--force", *extra)
        assert note in printed(capsys, "m.caffemodel", "n.pt", "--strict", *extra, code=1)


# -- progress ----------------------------------------------------------------------------------------------


def test_progress_is_shown_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converters.commands, "LARGE", 0)
    assert "wrote m.onnx" in printed(capsys, "m.caffemodel", "m.onnx")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert run(["convert", "m.caffemodel", "n.onnx"]) == 0
    assert "wrote n.onnx" in capsys.readouterr().out
