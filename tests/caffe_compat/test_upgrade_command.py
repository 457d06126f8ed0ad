"""`vggc upgrade` and the files that it writes."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from google.protobuf import text_format

from caffe_compat.errors import BinaryError, Problems, TextError, UpgradeError, VggcError
from caffe_compat.reading import read_document
from caffe_compat.schema import pb
from caffe_compat.upgrade_files import upgrade_file
from caffe_compat.wire import read_caffemodel
from caffe_compat.writing import new_file
from repro.cli import run

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "upgrade"
INDEX = json.loads((GOLDEN.parent / "index.json").read_text())
CASES = {case["id"]: case for case in INDEX["cases"] if case["section"] == "upgrade"}
NETS = sorted(id for id in CASES if (GOLDEN / id / "in.prototxt").exists())
SOLVERS = sorted(id for id in CASES if (GOLDEN / id / "solver_in.prototxt").exists())

FORK = """name: "n"
layers { name: "c" type: CONVOLUTION top: "c" convolution_param { num_output: 1 kernel_size: 1 hole: 2 } }
layers {
  name: "p" type: POOLING bottom: "c" top: "p"
  pooling_param { kernel_size: 2 }
  crazy_param { deep { a: 1 } b: [1, 2] }
}
odd: "x"
"""


def net(path: Path) -> pb.NetParameter:
    if path.suffix == ".prototxt":
        return text_format.Parse(path.read_text(), pb.NetParameter())
    return pb.NetParameter.FromString(path.read_bytes())


# -- against Caffe's tools ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", NETS)
@pytest.mark.parametrize(("tool", "suffix"), [("text", ".prototxt"), ("binary", ".caffemodel")])
def test_does_what_caffes_tools_do(case: str, tool: str, suffix: str, tmp_path: Path) -> None:
    verdict, out = CASES[case][tool], tmp_path / f"out{suffix}"
    code = run(["upgrade", str(GOLDEN / case / f"in{suffix}"), str(out)])
    assert (code != 0) == (verdict["rc"] != 0)
    assert out.exists() == verdict["wrote"]
    if verdict["wrote"]:
        assert net(out) == net(GOLDEN / case / f"out{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ([out.name] if verdict["wrote"] else [])


@pytest.mark.parametrize("case", SOLVERS)
def test_does_what_caffes_solver_tool_does(case: str, tmp_path: Path) -> None:
    out = tmp_path / "out.prototxt"
    assert run(["upgrade", str(GOLDEN / case / "solver_in.prototxt"), str(out)]) == 0
    got, want = (
        text_format.Parse(p.read_text(), pb.SolverParameter()) for p in (out, GOLDEN / case / "solver_out.prototxt")
    )
    assert got == want


@pytest.mark.parametrize("case", sorted(set(NETS) - {"v0_unknown_type", "v1_and_v2_mixed"}))
def test_blobs_survive_bit_by_bit(case: str, tmp_path: Path) -> None:
    source, out = GOLDEN / case / "in.caffemodel", tmp_path / "out.caffemodel"
    run(["upgrade", str(source), str(out)])
    old, new = ([layer for layer in read_caffemodel(path).weights if layer.blobs] for path in (source, out))
    assert [layer.name for layer in new] == [layer.name for layer in old]
    for before, after in zip(old, new, strict=True):
        assert [b.shape for b in after.blobs] == [b.shape for b in before.blobs]
        assert [b.values.tobytes() for b in after.blobs] == [b.values.tobytes() for b in before.blobs]


# -- text --------------------------------------------------------------------------------------------------


def test_without_out_the_text_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["upgrade", str(GOLDEN / "v1_lenet" / "in.prototxt")]) == 0
    captured = capsys.readouterr()
    assert text_format.Parse(captured.out, pb.NetParameter()) == net(GOLDEN / "v1_lenet" / "out.prototxt")
    assert "a net of generation V1, is brought to the newest generation" in captured.err
    assert all(line.startswith("vggc: ") for line in captured.err.splitlines())


def test_a_new_net_is_said_to_be_new(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source, out = GOLDEN / "v2_already_new" / "in.caffemodel", tmp_path / "o.caffemodel"
    assert run(["upgrade", str(source), str(out)]) == 0
    assert "of the newest generation already" in capsys.readouterr().err
    assert out.read_bytes() == source.read_bytes()


def test_fields_of_forks_are_kept_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in.prototxt", tmp_path / "out.prototxt"
    source.write_text(FORK)
    assert run(["upgrade", str(source), str(out)]) == 0
    document = read_document(out)
    kept = {"odd", "layer[0].convolution_param.hole", "layer[1].crazy_param"}
    assert {field.path for field in document.map.unknown} == kept
    assert "a: 1" in out.read_text()
    err = capsys.readouterr().err
    for line, name in ((2, "hole"), (6, "crazy_param"), (8, "odd")):
        assert f"{source}:{line}:" in err
        assert name in err


def test_strict_refuses_fields_of_forks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in.prototxt", tmp_path / "out.prototxt"
    source.write_text(FORK)
    assert run(["upgrade", "--strict", str(source), str(out)]) == 1
    assert not out.exists()
    err = capsys.readouterr().err
    assert "3 errors" in err
    assert 'neither Caffe nor a known fork has a field "hole"' in err


def test_strict_refuses_what_would_be_dropped() -> None:
    with pytest.raises(Problems) as caught:
        upgrade_file(GOLDEN / "v0_incompatible_fields" / "in.prototxt", strict=True)
    assert len(caught.value.errors) == 6
    assert caught.value.errors[0].where.line == 11


def test_unknown_fields_without_a_place_are_problems(tmp_path: Path) -> None:
    source = tmp_path / "in.prototxt"
    source.write_text(
        """input: "x" input_dim: 1 input_dim: 1 input_dim: 4 input_dim: 4
layers { layer { name: "p" type: "padding" pad: 1 lost: 1 } bottom: "x" top: "p" }
layers { layer { name: "c" type: "conv" kernelsize: 3 kept: 2 weight_filler { inner: 3 } } bottom: "p" top: "c" }
"""
    )
    result = upgrade_file(source)
    assert [problem.where.line for problem in result.problems] == [2, 3]
    text = result.text()
    assert "kept: 2" in text
    assert "lost" not in text
    with pytest.raises(Problems) as caught:
        upgrade_file(source, strict=True)
    assert sorted(error.where.line for error in caught.value.errors) == [2, 3, 3]


def test_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "o.prototxt"
    assert run(["upgrade", "--json", str(GOLDEN / "v0_incompatible_fields" / "in.prototxt"), str(out)]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert captured.err == ""
    assert (report["kind"], report["format"], report["generation"], report["changed"]) == ("net", "text", "V0", True)
    assert (report["target"], report["layers"], report["text"]) == (str(out), 4, None)
    assert len(report["problems"]) == 6
    assert run(["upgrade", "--json", str(GOLDEN / "solver_enum_sgd" / "solver_in.prototxt")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["generation"], report["target"]) == ("solver", None, None)
    assert report["text"] == 'net: "n"\ntype: "SGD"\n'


# -- binary ------------------------------------------------------------------------------------------------


def test_binary_needs_an_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["upgrade", str(GOLDEN / "v1_lenet" / "in.caffemodel")]) == 2
    captured = capsys.readouterr()
    assert "name the OUT" in captured.err
    assert captured.out == ""


def test_a_caffemodel_can_give_its_prototxt(tmp_path: Path) -> None:
    out = tmp_path / "net.prototxt"
    assert run(["upgrade", str(GOLDEN / "v1_lenet" / "in.caffemodel"), str(out)]) == 0
    want = net(GOLDEN / "v1_lenet" / "out.caffemodel")
    for layer in want.layer:
        layer.ClearField("blobs")
    assert net(out) == want


def test_text_does_not_become_binary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.caffemodel"
    assert run(["upgrade", str(GOLDEN / "v1_lenet" / "in.prototxt"), str(out)]) == 1
    assert "name the result .prototxt" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("generation", ["V0", "V1", "V2"])
def test_every_encoding_of_a_blob_is_copied(generation: str, tmp_path: Path) -> None:
    blobs = [
        pb.BlobProto(data=[1, 2], diff=[3, 4], num=1, channels=1, height=1, width=2),
        pb.BlobProto(shape=pb.BlobShape(dim=[1]), double_data=[0.1]),
        pb.BlobProto(shape=pb.BlobShape(dim=[2]), raw_data_type=pb.BlobProto.FLOAT16, raw_data=b"\x00\x3c\x00\x40"),
    ]
    old = pb.NetParameter(name="n", input=["x"], input_dim=[1, 1, 1, 1])
    if generation == "V0":
        old.layers.add(layer=pb.V0LayerParameter(name="a", type="innerproduct", blobs=blobs), bottom=["x"])
    elif generation == "V1":
        old.layers.add(name="a", type="INNER_PRODUCT", blobs=blobs)
    else:
        old.layer.add(name="a", type="InnerProduct", blobs=blobs)
    source, out = tmp_path / "in.caffemodel", tmp_path / "out.caffemodel"
    source.write_bytes(old.SerializeToString())
    upgrade_file(source).write(out)
    new = net(out)
    assert list(new.layer[1].blobs) == blobs
    assert new.layer[0].type == "Input"
    first = out.read_bytes()
    upgrade_file(source).write(out, force=True)
    assert out.read_bytes() == first


def test_fork_fields_of_binary_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = pb.LayerParameter(name="a", type="Strange").SerializeToString() + bytes.fromhex("f20c0108")
    source, out = tmp_path / "in.caffemodel", tmp_path / "out.caffemodel"
    header = pb.NetParameter(input=["x"], input_dim=[1, 1, 1, 1]).SerializeToString()
    source.write_bytes(header + b"\xa2\x06" + bytes([len(layer)]) + layer)
    assert run(["upgrade", str(source), str(out)]) == 0
    assert bytes.fromhex("f20c0108") in out.read_bytes()
    assert "layer[0].#206 is not one of Caffe's fields" in capsys.readouterr().err
    assert run(["upgrade", "--strict", "--force", str(source), str(out)]) == 1


def test_a_binary_solver_with_weights_inside_is_refused(tmp_path: Path) -> None:
    solver = pb.SolverParameter(type="SGD", max_iter=3)
    solver.net_param.layer.add(name="a").blobs.add(data=[1])
    source = tmp_path / "s.binaryproto"
    source.write_bytes(solver.SerializeToString())
    with pytest.raises(UpgradeError, match="weights in an inline net"):
        upgrade_file(source)
    solver.net_param.layer[0].ClearField("blobs")
    solver.ClearField("type")
    solver.solver_type = pb.SolverParameter.ADAM
    source.write_bytes(solver.SerializeToString())
    upgrade_file(source).write(tmp_path / "o.binaryproto")
    got = pb.SolverParameter.FromString((tmp_path / "o.binaryproto").read_bytes())
    assert (got.type, got.max_iter, got.HasField("solver_type")) == ("Adam", 3, False)


# -- files -------------------------------------------------------------------------------------------------


def test_an_existing_file_is_kept_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.prototxt"
    out.write_text("mine")
    source = str(GOLDEN / "v1_lenet" / "in.prototxt")
    assert run(["upgrade", source, str(out)]) == 1
    assert out.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert run(["upgrade", "--force", source, str(out)]) == 0
    assert net(out) == net(GOLDEN / "v1_lenet" / "out.prototxt")


def test_a_file_can_be_upgraded_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel"
    path.write_bytes((GOLDEN / "v1_lenet" / "in.caffemodel").read_bytes())
    assert run(["upgrade", "--force", str(path), str(path)]) == 0
    assert net(path) == net(GOLDEN / "v1_lenet" / "out.caffemodel")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", BinaryError),
        (b"layers { name: }", TextError),
        (b"\x12\x05abc", BinaryError),
        (b'layers { layer { type: "conv" } } layers { name: "a" type: RELU }', UpgradeError),
    ],
)
def test_bad_files_are_refused(data: bytes, error: type[VggcError], tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.write_bytes(data)
    with pytest.raises(error):
        upgrade_file(source)
    assert run(["upgrade", str(source), str(out)]) == 1
    assert not out.exists()


def test_a_missing_file_or_folder_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["upgrade", str(tmp_path / "none.prototxt")]) == 1
    assert "no such file" in capsys.readouterr().err
    assert run(["upgrade", str(GOLDEN / "v1_lenet" / "in.prototxt"), str(tmp_path / "no" / "o.prototxt")]) == 1
    assert "create the folder first" in capsys.readouterr().err


def write_half(path: Path) -> None:
    with new_file(path) as file:
        file.write(b"half")
        raise RuntimeError


def test_a_file_in_the_making_vanishes_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        write_half(path)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert path.read_text() == "old"
    with new_file(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    mask = os.umask(0o022)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
