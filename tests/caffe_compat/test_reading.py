"""Nets, solvers, means and records from files, told apart by content."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caffe_compat.errors import BinaryError, FormatError, Problems, TextError, VggcError
from caffe_compat.reading import (
    parse_datum,
    parse_net,
    read_datum,
    read_document,
    read_mean,
    read_net,
    read_solver,
)
from caffe_compat.schema import pb
from tests.caffe_compat.wire_files import GOLDEN, numbers, small_model

NET = 'name: "n"\nlayer { name: "in" type: "Input" top: "x" }\n'
SOLVER = 'net: "net.prototxt"\nbase_lr: 0.5\nmax_iter: 10\n'


def written(folder: Path, data: str | bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# -- which is which ----------------------------------------------------------------------------------------

NETS = {
    "V2": NET,
    "V1": 'layers { name: "a" type: RELU }',
    "V0": 'layers { layer { name: "a" type: "conv" } }',
    "only inputs": 'input: "x" input_dim: 1',
    "empty": " \n# nothing but a comment\n",
    "windows lines and a mark": b"\xef\xbb\xbf" + NET.replace("\n", "\r\n").encode(),
    "UTF-16": NET.encode("utf-16"),
    "net with a solver's field": NET + "max_iter: 3",
    "Latin-1": "# Gr\xf6\xdfe\n".encode("latin-1") + NET.encode(),
    "binary": small_model(),
    "binary V1": pb.NetParameter(layers=[pb.V1LayerParameter(name="a")]).SerializeToString(),
}
SOLVERS = {
    "usual": SOLVER,
    "net inside": 'net_param { name: "n" layer { name: "a" } } max_iter: 3',
    "fork's field": SOLVER + "iter_size: 2 epochs: 3",
    "debug": "debug_info: true base_lr: 1",
    "binary": pb.SolverParameter(net="a", base_lr=0.5, max_iter=10, momentum=0.9).SerializeToString(),
}


@pytest.mark.parametrize("name", ["a.prototxt", "a.caffemodel", "solver.txt"])
@pytest.mark.parametrize("case", NETS)
def test_nets(tmp_path: Path, case: str, name: str) -> None:
    assert isinstance(read_document(written(tmp_path, NETS[case], name)).message, pb.NetParameter)


@pytest.mark.parametrize("name", ["a.prototxt", "net.bin"])
@pytest.mark.parametrize("case", SOLVERS)
def test_solvers(tmp_path: Path, case: str, name: str) -> None:
    assert isinstance(read_document(written(tmp_path, SOLVERS[case], name)).message, pb.SolverParameter)


def test_text_positions(tmp_path: Path) -> None:
    path = written(tmp_path, NET)
    where = read_document(path).map.at("layer[0]")
    assert (where.source, where.line) == (str(path), 2)


def test_binary_net_comes_without_blobs(tmp_path: Path) -> None:
    net = read_net(written(tmp_path, small_model()))
    assert [layer.name for layer in net.layer] == ["conv", "ip", "perm"]
    assert not any(layer.blobs for layer in net.layer)


def test_recorded_net() -> None:
    assert [layer.name for layer in read_net(GOLDEN / "net.prototxt").layer] == ["in", "alpha", "beta", "gamma"]


# -- refusals ----------------------------------------------------------------------------------------------


def test_net_and_solver_confused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"this is a solver, not a net; give the net's own file: see its `net` field"):
        read_net(written(tmp_path, SOLVER))
    with pytest.raises(FormatError, match="this is a net, not a solver"):
        read_solver(written(tmp_path, NET))


def test_unknown_fields_of_text(tmp_path: Path) -> None:
    text = 'layer { name: "a" turn_param { order: 0 } }\nlayer { twist_param { } }'
    path = written(tmp_path, text)
    assert [u.path for u in read_document(path).map.unknown] == ["layer[0].turn_param", "layer[1].twist_param"]
    with pytest.raises(Problems) as caught:
        read_net(path)
    assert [(e.where.line, e.where.column) for e in caught.value.errors] == [(1, 19), (2, 9)]
    with pytest.raises(TextError, match='neither Caffe nor a known fork has a field "twist_param"'):
        parse_net('layer { name: "b" twist_param { } }')


def test_unknown_fields_of_binary_nets_are_kept(tmp_path: Path) -> None:
    path = written(tmp_path, small_model())
    assert [u.path for u in read_document(path).map.unknown] == ["layer[2].#202"]
    assert read_net(path).layer[2].name == "perm"


@pytest.mark.parametrize(
    ("data", "kind", "what"),
    [
        (b"", BinaryError, "empty"),
        (gzip.compress(NET.encode(), mtime=0), BinaryError, "gzip"),
        (b"<html><body>404</body></html>", BinaryError, "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", BinaryError, "Git LFS"),
        (b"hello, this is text\n", TextError, ""),
        (b"item { name: 'x' }", TextError, 'neither a net nor a solver: it begins with "item"'),
        (NET.encode().replace(b"type", b"ty\x00pe"), TextError, ""),
        (bytes(range(256)) * 10, BinaryError, ""),
        (pb.SolverState(iter=5, learned_net="a").SerializeToString(), BinaryError, ""),
    ],
)
def test_other_files(tmp_path: Path, data: bytes, kind: type[VggcError], what: str) -> None:
    with pytest.raises(kind) as caught:
        read_document(written(tmp_path, data))
    assert what in caught.value.what
    assert caught.value.where.source == str(tmp_path / "file")


def test_too_much_text(tmp_path: Path) -> None:
    path = tmp_path / "large.prototxt"
    with open(path, "wb") as file:
        file.write(b" " * 5000)
        file.truncate(65 << 20)
    with pytest.raises(TextError, match="at most 64 MiB"):
        read_document(path)


@pytest.mark.parametrize("read", [read_document, read_net, read_solver, read_mean, read_datum])
def test_files_that_cannot_be_opened(tmp_path: Path, read) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(VggcError) as caught:
            read(path)
        assert caught.value.remedy


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_random_bytes(tmp_path: Path, data: bytes) -> None:
    path = written(tmp_path, data)
    for read in (read_document, read_mean, read_datum):
        try:
            read(path)
        except VggcError:
            continue


# -- means and records -------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("field", ["data", "double_data"])
def test_mean(tmp_path: Path, legacy: bool, field: str) -> None:
    values = numbers(1, 3, 2, 4)
    proto = pb.BlobProto(**{field: values.ravel().tolist()})
    if legacy:
        proto.num, proto.channels, proto.height, proto.width = values.shape
    else:
        proto.shape.dim.extend(values.shape)
    mean = read_mean(written(tmp_path, proto.SerializeToString()))
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, values)
    assert mean.flags.writeable


@pytest.mark.parametrize(
    "data",
    [
        pb.BlobProto(num=1, channels=3, height=2, width=4, data=[0.0]).SerializeToString(),
        pb.BlobProto(num=1, channels=1, height=1, width=1, data=[0.0]).SerializeToString()[:-2],
        small_model(),
        NET.encode(),
    ],
)
def test_other_files_as_means(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BinaryError):
        read_mean(written(tmp_path, data))


def test_datum(tmp_path: Path) -> None:
    datum = pb.Datum(channels=1, height=1, width=2, data=b"ab", label=3)
    assert read_datum(written(tmp_path, datum.SerializeToString())) == datum
    assert parse_datum(datum.SerializeToString()) == datum


@pytest.mark.parametrize("data", [b"", b"\xff\xff", b"hello, this is text\n", b"\x7a\x01a"])
def test_other_bytes_as_datum(data: bytes) -> None:
    with pytest.raises(BinaryError):
        parse_datum(data, "record 3")
