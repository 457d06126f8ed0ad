"""Files that are not what they claim: exit code 1, a clear line each, no traceback, little memory, nothing left."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from caffe_compat.schema import pb
from converters.convert import Options, convert
from repro.cli import run
from tests import models
from tests.bench.measure import run as measured
from tests.models import delimited, varint
from tests.shared import ROOT

MEMORY = 200
"""MiB of its own that a process may take for a small bad file; the interpreter and its libraries take most of it."""

NET = b'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 4 dim: 4 } } }\n'


def layer(body: bytes, kind: str = "InnerProduct") -> bytes:
    """A binary net of one layer."""
    head = pb.LayerParameter(name="ip", type=kind, bottom=["data"], top=["ip"]).SerializeToString()
    return delimited(100, head + body)


def blob(*dims: int, data: bytes = b"") -> bytes:
    shape = b"".join(varint(dim % 2**64) for dim in dims)
    return delimited(7, delimited(7, delimited(1, shape)) + data)


def nested(depth: int, number: int = 202) -> bytes:
    data = b""
    for _ in range(depth):
        data = delimited(number, data)
    return data


def whole() -> bytes:
    return models.caffemodel(models.made())


def safetensors(header: object, values: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


def tensor(shape: list[int], end: int) -> dict[str, object]:
    return {"ip.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}


SOURCES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty": ("m.caffemodel", lambda: b""),
    "random": ("m.caffemodel", lambda: random.Random(0).randbytes(100_000)),
    "zeros": ("m.caffemodel", lambda: bytes(100_000)),
    "HTML": ("m.caffemodel", lambda: b"<!DOCTYPE html><html><body>Not found</body></html>"),
    "LFS pointer": ("m.caffemodel", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    "gzip": ("m.caffemodel", lambda: b"\x1f\x8b\x08\x00" + bytes(100)),
    "pickle": ("m.pt", lambda: b"\x80\x04\x95" + bytes(100)),
    "text": ("m.caffemodel", lambda: NET),
    "half": ("m.caffemodel", lambda: whole()[: len(whole()) // 2]),
    "one byte short": ("m.caffemodel", lambda: whole()[:-1]),
    "a byte too many": ("m.caffemodel", lambda: whole() + b"\x0a"),
    "huge layer": ("m.caffemodel", lambda: varint(100 << 3 | 2) + varint(2**40)),
    "huge blob": ("m.caffemodel", lambda: layer(varint(7 << 3 | 2) + varint(2**50) + b"xyz")),
    "huge values": ("m.caffemodel", lambda: layer(delimited(7, b"\x2a" + varint(2**31) + bytes(64)))),
    "absurd shape": ("m.caffemodel", lambda: layer(blob(2**31 - 1, 2**31 - 1, data=delimited(5, bytes(64))))),
    "negative shape": ("m.caffemodel", lambda: layer(blob(-1, -16, data=delimited(5, bytes(64))))),
    "40 axes": ("m.caffemodel", lambda: layer(blob(*[1] * 40, data=delimited(5, bytes(4))))),
    "no values": ("m.caffemodel", lambda: layer(blob(10, 10))),
    "deep": ("m.caffemodel", lambda: layer(nested(10_000, 60_000)) + nested(10_000, 60_000)),
    "unknown layer": ("m.caffemodel", lambda: whole().replace(b"InnerProduct", b"Frobnicating")),
    "escape sequences": ("m.caffemodel", lambda: whole().replace(b"InnerProduct", b"\x1b[2J\x07\r\nHello")),
    "no net": ("m.safetensors", lambda: safetensors(tensor([2], 8), bytes(8))),
    "deep header": ("m.safetensors", lambda: safetensors(b'{"a":' + b"[" * 100_000)),
    "huge header": ("m.safetensors", lambda: struct.pack("<Q", 2**40) + b'{"a":1}'),
    "absurd tensor": ("m.safetensors", lambda: safetensors(tensor([2**40, 2**40], 8), bytes(8))),
    "deep net": ("m.safetensors", lambda: carrying("layer { " * 10_000)),
    "absurd net": ("m.safetensors", lambda: carrying(absurd(2**31 - 1))),
    "preprocessing": ("m.safetensors", lambda: carrying(models.NETS["plain"], preprocessing="[")),
    "half HDF5": ("m.h5", lambda: b"\x89HDF\r\n\x1a\n" + bytes(200)),
}


def carrying(net: str, **metadata: str) -> bytes:
    """A safetensors file without tensors and with a net."""
    return safetensors({"__metadata__": {"caffe_net": net, **metadata}})


def absurd(size: int) -> str:
    return models.NETS["plain"].replace("dim: 12 dim: 12", f"dim: {size} dim: {size}")


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_a_bad_file_is_one_clear_line(name: str, command: str, tmp_path: Path) -> None:
    file, make = SOURCES[name]
    source = tmp_path / file
    source.write_bytes(make())
    targets = [str(tmp_path / "out.onnx"), str(tmp_path / "out.safetensors")] if command == "convert" else []
    done = measured([sys.executable, "-m", "repro", command, str(source), *targets], ROOT, check=False)
    if command == "inspect" and name in ("text", "no net", "preprocessing"):
        return  # these can be looked at
    assert done.code == 1
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 20
    assert all(line.startswith("vggc: ") and line.isprintable() for line in lines)
    assert "internal error" not in done.stderr
    assert str(source) in lines[0]
    assert done.anonymous < MEMORY
    assert list(tmp_path.iterdir()) == [source]


TEXTS = {
    "deep": b"layer { " * 10_000,
    "deep and closed": b"a { " * 10_000 + b"}" * 10_000,
    "absurd": absurd(2**31 - 1).encode(),
    "unknown": models.NETS["plain"].replace("InnerProduct", "Frobnicating").encode(),
    "binary": bytes(range(256)) * 10,
    "another": models.NETS["grouped"].encode(),
    "solver": b'net: "x" base_lr: 0.01 lr_policy: "fixed"',
    "empty": b"",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_bad_net_is_one_clear_line(name: str, tmp_path: Path) -> None:
    source, net = tmp_path / "m.caffemodel", tmp_path / "net.prototxt"
    source.write_bytes(whole())
    net.write_bytes(TEXTS[name])
    command = [sys.executable, "-m", "repro", "convert", str(source), str(tmp_path / "o.h5"), "--net", str(net)]
    done = measured(command, ROOT, check=False)
    assert done.code == 1
    assert "internal error" not in done.stderr
    assert all(line.startswith("vggc: ") for line in done.stderr.splitlines())
    assert done.anonymous < MEMORY
    assert sorted(tmp_path.iterdir()) == [source, net]


def test_a_net_with_more_than_one_problem_gives_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = models.NETS["plain"].replace("LRN", "Frobnicate").replace("kernel_size: 3 pad: 1", "pad: 1")
    (tmp_path / "net.prototxt").write_text(data)
    (tmp_path / "m.caffemodel").write_bytes(whole())
    net = str(tmp_path / "net.prototxt")
    assert run(["convert", str(tmp_path / "m.caffemodel"), "--net", net, str(tmp_path / "o.onnx")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert 'layer "conv1"' in lines[0]
    assert "Frobnicate" in lines[1]
    assert lines[2] == "vggc: 2 errors"


# -- damage anywhere ---------------------------------------------------------------------------------------


def said(args: list[str]) -> tuple[int, str]:
    """Exit code and messages of a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(args)
    return code, err.getvalue()


def damaged(data: bytes, count: int, seed: int) -> list[bytes]:
    """Copies with one to ten flipped bits, half of them near the front, and copies that are cut short."""
    rng = random.Random(seed)
    made = []
    for turn in range(count):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 3, 10))):
            at = rng.randrange(len(data) if turn % 2 else min(len(data), 1500))
            changed[at] ^= 1 << rng.randrange(8)
        made.append(bytes(changed) if turn % 4 else data[: rng.randrange(len(data))])
    return made


@pytest.mark.parametrize("name", ["plain", "normalised", "names"])
@pytest.mark.parametrize("suffix", ["caffemodel", "safetensors", "h5", "pt", "onnx"])
def test_flipped_bits_and_cut_files_give_errors_not_faults(name: str, suffix: str, tmp_path: Path) -> None:
    models.write(tmp_path / "m.caffemodel", name)
    targets = [tmp_path / f"m.{each}" for each in ("safetensors", "h5", "pt", "onnx")]
    convert(tmp_path / "m.caffemodel", targets)
    bad, out = tmp_path / f"bad.{suffix}", tmp_path / "out"
    convert_it = ["convert", str(bad), str(out / "o.safetensors"), str(out / "o.h5"), str(out / "o.onnx")]
    convert_it += ["--net", str(tmp_path / "m.prototxt")] if suffix in ("h5", "pt") else []
    for data in damaged((tmp_path / f"m.{suffix}").read_bytes(), 60, seed=len(name)):
        bad.write_bytes(data)
        out.mkdir()
        for args in (["inspect", str(bad)], *([convert_it] if suffix != "onnx" else [])):
            code, messages = said(args)
            assert code in (0, 1)
            assert "internal error" not in messages
            assert bool(messages) == bool(code)
        assert len(list(out.iterdir())) in (0, 3)
        shutil.rmtree(out)


@pytest.mark.parametrize("suffix", ["caffemodel", "safetensors"])
def test_a_changed_value_is_carried_over_not_noticed(suffix: str, tmp_path: Path) -> None:
    """Weights have no checksum of their own; the summary's sha256 tells."""
    models.write(tmp_path / "m.caffemodel")
    convert(tmp_path / "m.caffemodel", [tmp_path / "m.safetensors"])
    source = tmp_path / f"m.{suffix}"
    one = convert(source, [tmp_path / "one.pt"])
    values = models.made().arrays["ip", 0].tobytes()
    data = source.read_bytes()
    source.write_bytes(data.replace(values, b"\x01" + values[1:]))
    other = convert(source, [tmp_path / "other.pt"])
    assert one.source_sha256 != other.source_sha256
    assert one.results[0].sha256 != other.results[0].sha256


def test_numbers_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    model = models.made()
    model.arrays["ip", 1][:3] = np.nan, np.inf, -np.inf
    (tmp_path / "m.caffemodel").write_bytes(models.caffemodel(model))
    report = convert(tmp_path / "m.caffemodel", [tmp_path / "m.safetensors"], Options(strict=True))
    assert report.notes == ()
    assert model.arrays["ip", 1].tobytes() in (tmp_path / "m.safetensors").read_bytes()
