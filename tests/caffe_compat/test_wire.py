"""Reading caffemodels: every encoding of a blob, every generation, and files that are not what they claim."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
import random
import resource
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caffe_compat.errors import BinaryError, VggcError
from caffe_compat.schema import pb
from caffe_compat.wire import Model, read_caffemodel
from tests.caffe_compat.wire_files import (
    GOLDEN,
    delimited,
    layer,
    number,
    numbers,
    packed,
    shape,
    small_model,
    unpacked,
    varint,
)
from tests.conftest import FOLDERS


def read(folder: Path, data: bytes) -> Model:
    path = folder / "w.caffemodel"
    path.write_bytes(data)
    return read_caffemodel(path)


def only_blob(folder: Path, blob: bytes):
    ((found,),) = [entry.blobs for entry in read(folder, layer(blob)).weights]
    return found


def refused(folder: Path, data: bytes) -> BinaryError:
    with pytest.raises(BinaryError) as caught:
        read(folder, data)
    assert caught.value.remedy
    assert caught.value.where.offset >= 0
    return caught.value


# -- encodings ---------------------------------------------------------------------------------------------

VALUES = numbers(2, 3).ravel()


@pytest.mark.parametrize(
    "data",
    [
        packed(VALUES),
        unpacked(VALUES),
        packed(VALUES[:2]) + packed(VALUES[2:5]) + packed(VALUES[5:]),
        unpacked(VALUES[:1]) + packed(VALUES[1:4]) + unpacked(VALUES[4:]),
        packed(VALUES[:0]) + packed(VALUES),
        b"\xad\x00" + VALUES[:1].tobytes() + unpacked(VALUES[1:]),
        delimited(12, VALUES.tobytes()) + number(10, pb.BlobProto.FLOAT),
    ],
    ids=["packed", "unpacked", "chunks", "mixed", "empty chunk", "needless tag byte", "raw float"],
)
@pytest.mark.parametrize("shape_first", [True, False])
def test_float_encodings(tmp_path: Path, data: bytes, shape_first: bool) -> None:
    blob = only_blob(tmp_path, shape(2, 3) + data if shape_first else data + shape(2, 3))
    assert blob.shape == (2, 3)
    assert blob.values.dtype == np.float32
    np.testing.assert_array_equal(blob.array, VALUES.reshape(2, 3))


def test_long_unpacked_run(tmp_path: Path) -> None:
    values = numbers(1000)
    blob = only_blob(tmp_path, shape(1000) + unpacked(values[:700]) + delimited(6, b"") + unpacked(values[700:]))
    np.testing.assert_array_equal(blob.values, values)


def test_double_data_wins_over_data(tmp_path: Path) -> None:
    doubles = np.array([1 / 3, 2 / 3])
    model = read(tmp_path, layer(shape(2) + packed(VALUES[:2]) + packed(doubles, 8)))
    blob = model.weights.layers[0].blobs[0]
    assert blob.values.dtype == np.float64
    np.testing.assert_array_equal(blob.values, doubles)
    assert "double_data is read, data ignored" in model.map.warnings[0]


def test_half_precision(tmp_path: Path) -> None:
    halves = VALUES.astype(np.float16)
    blob = only_blob(tmp_path, shape(6) + number(10, pb.BlobProto.FLOAT16) + delimited(12, halves.tobytes()))
    assert blob.values.dtype == np.float16
    np.testing.assert_array_equal(blob.values, halves)


@pytest.mark.parametrize("kind", [pb.BlobProto.INT, pb.BlobProto.UINT, None])
def test_integer_raw_data_is_refused(tmp_path: Path, kind: int | None) -> None:
    stated = b"" if kind is None else number(10, kind)
    error = refused(tmp_path, layer(shape(1) + stated + delimited(12, bytes(4))))
    assert "raw_data" in error.what


def test_packed_values_are_views_of_the_file(tmp_path: Path) -> None:
    blob = only_blob(tmp_path, shape(2, 3) + packed(VALUES))
    data = Path(blob.path).read_bytes()
    assert data[blob.offset : blob.offset + 24] == VALUES.tobytes()
    assert not blob.values.flags.writeable
    assert blob.values.base is not None


def test_copied_values_have_no_offset(tmp_path: Path) -> None:
    blob = only_blob(tmp_path, shape(6) + unpacked(VALUES))
    assert (blob.path, blob.offset) == ("", -1)


# -- shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ({1: 1, 2: 1, 3: 2, 4: 3}, (1, 1, 2, 3)),
        ({1: 6, 2: 1, 3: 1, 4: 1}, (6, 1, 1, 1)),
    ],
)
def test_legacy_sizes_win_over_shape(tmp_path: Path, dims: dict[int, int], expected: tuple[int, ...]) -> None:
    stated = b"".join(number(*item) for item in dims.items())
    blob = only_blob(tmp_path, stated + shape(3, 2) + packed(VALUES))
    assert blob.shape == expected
    assert blob.legacy


def test_partly_stated_legacy_sizes_count_as_zero(tmp_path: Path) -> None:
    error = refused(tmp_path, layer(number(1, 6) + packed(VALUES)))
    assert "6 values but shape 6 x 0 x 0 x 0 (0)" in str(error)


def test_scalar_blob_without_shape(tmp_path: Path) -> None:
    assert only_blob(tmp_path, packed(VALUES[:1])).shape == ()


@pytest.mark.parametrize(
    ("blob", "what"),
    [
        (shape(2, 2) + packed(VALUES), "blob 0 has 6 values but shape 2 x 2 (4)"),
        (packed(VALUES), "6 values but no shape (1)"),
        (shape(2, 3), "0 values but shape 2 x 3 (6)"),
        (shape(-1) + packed(VALUES), "shape -1; sizes are"),
        (shape(2**62, 4) + packed(VALUES), "sizes are 0 to"),
        (shape(2**31) + packed(VALUES), "sizes are 0 to"),
        (shape(*[2**31 - 1] * 32) + packed(VALUES), "6 values but shape"),
        (shape(*[1] * 33) + packed(VALUES[:1]), "33 axes; Caffe allows 32"),
        (number(1, -1) + number(2, 1) + number(3, 1) + number(4, 1), "shape -1 x 1 x 1 x 1"),
        (shape(1) + delimited(5, b"abc"), "no multiple of 4"),
        (shape(1) + number(10, 2) + delimited(12, b"abc"), "no multiple of 2"),
    ],
)
def test_impossible_blobs(tmp_path: Path, blob: bytes, what: str) -> None:
    error = refused(tmp_path, layer(shape(1) + packed(VALUES[:1]), blob.replace(b"blob 0", b"")))
    assert what.replace("blob 0", "blob 1") in str(error)
    assert error.where.layer == "ip"


def test_values_in_a_fork_field_are_pointed_out(tmp_path: Path) -> None:
    error = refused(tmp_path, layer(shape(6) + delimited(14, bytes(6))))
    assert "#14" in error.remedy


# -- generations and what surrounds the blobs --------------------------------------------------------------


def test_net_is_kept_without_blobs(tmp_path: Path) -> None:
    data = small_model()
    model = read(tmp_path, data)
    expected = pb.NetParameter.FromString(data)
    for param in expected.layer:
        del param.blobs[:]
    assert model.net == expected
    assert [entry.name for entry in model.weights] == ["conv", "ip", "perm"]
    assert [entry.type for entry in model.weights] == ["Convolution", "InnerProduct", "Permute"]


def test_positions(tmp_path: Path) -> None:
    data = small_model()
    model = read(tmp_path, data)
    for index in range(3):
        offset = model.map.at(f"layer[{index}]").offset
        assert data[offset : offset + 2] == b"\xa2\x06"
    blob = model.map.at("layer[1].blobs[0]").offset
    assert data[blob] == 7 << 3 | 2
    assert model.weights.layers[1].blobs[0].where.offset == blob


def test_unknown_fields_are_kept_and_reported(tmp_path: Path) -> None:
    data = small_model()
    model = read(tmp_path, data)
    (unknown,) = model.map.unknown
    assert unknown.path == "layer[2].#202"
    assert unknown.text == "#202: 2 bytes 08 01"
    assert data[unknown.where.offset :].startswith(varint(202 << 3 | 2))
    assert delimited(202, b"\x08\x01") in model.net.SerializeToString()


@pytest.mark.parametrize(
    ("extra", "path", "text"),
    [
        (number(200, 7), "layer[0].#200", "#200: 7"),
        (varint(200 << 3 | 5) + struct.pack("<f", 0.5), "layer[0].#200", "#200: 4 bytes 00 00 00 3f = 0.5"),
        (delimited(200, bytes(20)), "layer[0].#200", "#200: 20 bytes " + "00 " * 16 + "..."),
        (delimited(121, number(1, 9)), "layer[0].pooling_param.pool", "pool: 9"),
        (delimited(147, delimited(1, b"")), "layer[0].swish_param.#1", "#1: 0 bytes "),
        (delimited(148, number(3, 1)), "layer[0].clip_param", "lacks min, max, which Caffe requires"),
        (number(121, 1), "layer[0].#121", "#121: 1"),
    ],
)
def test_fork_fields(tmp_path: Path, extra: bytes, path: str, text: str) -> None:
    model = read(tmp_path, layer(shape(6) + packed(VALUES), extra=extra))
    assert (path, text) in [(u.path, u.text) for u in model.map.unknown]


def test_gradients_are_noted(tmp_path: Path) -> None:
    (warning,) = read(tmp_path, small_model()).map.warnings
    assert warning == "gradients of 2 blob(s), 248 bytes, are in the file and were not read"


@pytest.mark.parametrize("field", [6, 9])
def test_other_number_of_gradients_than_values(tmp_path: Path, field: int) -> None:
    gradients = numbers(5).astype(np.float32 if field == 6 else np.float64)
    error = refused(tmp_path, layer(shape(6) + packed(VALUES) + packed(gradients, field)))
    assert "6 values but 5 gradients" in str(error)


def test_layers_of_two_generations(tmp_path: Path) -> None:
    assert "both layer and layers" in str(refused(tmp_path, layer() + delimited(2, delimited(4, b"old"))))


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    model = read(tmp_path, delimited(1, "Größe".encode("latin-1")) + layer())
    assert model.net.name == "Größe"
    assert "net" not in model.map.positions
    assert "name is not UTF-8" in model.map.warnings[0]


def test_v1(tmp_path: Path) -> None:
    blob = b"".join(number(i, d) for i, d in enumerate((1, 1, 2, 3), 1)) + packed(VALUES)
    param = delimited(4, b"fc") + number(5, pb.V1LayerParameter.INNER_PRODUCT) + delimited(6, blob)
    model = read(tmp_path, delimited(2, param) * 2)
    assert [entry.type for entry in model.weights] == ["InnerProduct"] * 2
    assert model.map.at("layers[1]").offset == len(param) + 2
    assert not model.net.layers[0].blobs


def test_v0_blobs_inside_the_nested_layer(tmp_path: Path) -> None:
    blob = shape(6) + packed(VALUES)
    v0 = delimited(1, b"conv1") + delimited(2, b"conv") + delimited(50, blob) + number(8, 3)
    model = read(tmp_path, delimited(2, delimited(1, v0) + delimited(2, b"data")))
    (entry,) = model.weights
    assert (entry.name, entry.type) == ("conv1", "Convolution")
    np.testing.assert_array_equal(entry.blobs[0].values, VALUES)
    assert model.net.layers[0].layer.kernelsize == 3
    assert not model.net.layers[0].layer.blobs
    assert list(model.net.layers[0].bottom) == ["data"]


def test_repeated_names_stay_in_file_order(tmp_path: Path) -> None:
    first, second = (layer(shape(1) + packed(VALUES[i : i + 1])) for i in range(2))
    model = read(tmp_path, first + second)
    assert [entry.blobs[0].values[0] for entry in model.weights] == list(VALUES[:2])


def test_net_after_its_layers(tmp_path: Path) -> None:
    assert read(tmp_path, layer() + delimited(1, b"late")).net.name == "late"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.caffemodel")), ids=lambda p: p.stem)
def test_equals_protobuf_on_recorded_files(path: Path) -> None:
    if path.stem in ("truncated", "not_a_model", "blob_without_any_shape"):
        with pytest.raises(BinaryError):
            read_caffemodel(path)
        return
    net = pb.NetParameter.FromString(path.read_bytes())
    expected = [(param.name, list(param.blobs)) for param in [*net.layer, *net.layers]]
    got = read_caffemodel(path).weights
    assert [(entry.name, len(entry.blobs)) for entry in got] == [(name, len(blobs)) for name, blobs in expected]
    for entry, (_, blobs) in zip(got, expected, strict=True):
        for blob, proto in zip(entry.blobs, blobs, strict=True):
            np.testing.assert_array_equal(blob.values, proto.double_data or proto.data)


def test_equals_protobuf_on_published_models(pytestconfig: pytest.Config) -> None:
    refused, read = [], 0
    models = sorted((pytestconfig.stash[FOLDERS].zoo / "models").rglob("*.caffemodel"))
    if not models:
        pytest.skip("needs published models: --zoo DIR")
    for path in models:
        net = pb.NetParameter.FromString(path.read_bytes())
        try:
            got = read_caffemodel(path).weights
        except BinaryError:
            refused.append(path.name)
            continue
        read += 1
        expected = [(param, blob) for param in [*net.layer, *net.layers] for blob in param.blobs]
        flat = [(entry, blob) for entry in got for blob in entry.blobs]
        for (entry, blob), (param, proto) in zip(flat, expected, strict=True):
            assert entry.name == param.name
            values = np.asarray(proto.double_data or proto.data, blob.values.dtype)
            assert blob.values.tobytes() == (proto.raw_data or values.tobytes())
    assert read
    assert refused in ([], ["test_persist.caffemodel"])  # 48 values in 4 x 3 x 0 x 0; Caffe refuses it as well


# -- large -------------------------------------------------------------------------------------------------


def test_more_than_two_gib(tmp_path: Path) -> None:
    """A sparse file of 2.4 GiB: nothing is read that nobody looks at."""
    count, path = 640 << 20, tmp_path / "large.caffemodel"
    head = shape(count) + varint(5 << 3 | 2) + varint(count * 4)
    inner = delimited(1, b"fc6") + varint(7 << 3 | 2) + varint(len(head) + count * 4) + head
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open(path, "wb") as file:
        start = file.write(varint(100 << 3 | 2) + varint(len(inner) + count * 4) + inner)
        file.seek(start + count * 4 - 4)
        file.write(struct.pack("<f", 1.5) + layer(shape(1) + packed(VALUES[:1]), name="fc7"))
    try:
        large, small = read_caffemodel(path).weights
        assert large.blobs[0].values.size == count
        assert (large.blobs[0].values[0], large.blobs[0].values[-1]) == (0.0, 1.5)
        assert small.blobs[0].offset > 2**31
    finally:
        path.unlink()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


# -- hostile -----------------------------------------------------------------------------------------------


def hdf5() -> bytes:
    buffer = io.BytesIO()
    h5py.File(buffer, "w").close()
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 102860269\n"

FOREIGN = {
    "text": (b'name: "net"\nlayer { name: "a" }\n', "text", "prototxt"),
    "html": (b"\n<!DOCTYPE html><html><body>404", "HTML", "raw file"),
    "lfs": (LFS, "Git LFS", "git lfs pull"),
    "gzip": (gzip.compress(small_model()), "gzip", "unpack"),
    "zip": (zipped(), "zip", "unpack"),
    "hdf5": (hdf5(), "HDF5", "weights"),
    "pickle": (pickle.dumps({"a": [1.0] * 20}), "pickle", "safetensors"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x031.9:\x10", "no NetParameter", "ONNX"),
    "mean": (pb.BlobProto(num=1, channels=1, height=1, width=1, data=[0]).SerializeToString(), "no Net", "means"),
    "solverstate": (pb.SolverState(iter=5, learned_net="a").SerializeToString(), "no NetParameter", "solver states"),
    "empty": (b"", "empty", "fetch"),
    "no layers": (delimited(1, b"\x01net"), "no layers", "fetch"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_other_formats_are_named(tmp_path: Path, case: str) -> None:
    data, what, remedy = FOREIGN[case]
    error = refused(tmp_path, data)
    assert what in error.what
    assert remedy in error.remedy


def nested(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = delimited(7, data)
    return data


HOSTILE = {
    "length beyond the file": delimited(1, b"n") + varint(100 << 3 | 2) + varint(2**40) + b"\x00" * 10,
    "length beyond its message": delimited(100, delimited(1, b"n") + varint(7 << 3 | 2) + varint(200)) + bytes(300),
    "length of 2^63": delimited(100, varint(7 << 3 | 2) + varint(2**63)),
    "negative length": delimited(1, b"n") + varint(100 << 3 | 2) + b"\xff" * 9 + b"\x01",
    "endless varint": delimited(1, b"n") + b"\xff" * 100,
    "field number 0": delimited(1, b"n") + b"\x02\x00",
    "group": delimited(1, b"n") + varint(9 << 3 | 3) + varint(9 << 3 | 4),
    "groups 10,000 deep": delimited(1, b"n") + varint(9 << 3 | 3) * 10_000 + varint(9 << 3 | 4) * 10_000,
    "wire type 7": delimited(1, b"n") + b"\x4f",
    "cut in a tag": delimited(1, b"n") + b"\xa2",
    "cut in a float": layer(shape(1) + b"\x2d\x00\x00"),
    "huge number of values claimed": layer(shape(2**30) + varint(5 << 3 | 2) + varint(2**32)),
    "many empty layers": delimited(100, b"") * 150_000,
    "many unknown fields": layer(extra=number(200, 1) * 20_000),
    "many fields": layer(extra=number(10, 1) * 600_000),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bytes(tmp_path: Path, case: str) -> None:
    refused(tmp_path, HOSTILE[case])


def test_deep_nesting_is_not_followed(tmp_path: Path) -> None:
    """Caffe's messages nest a few levels; what lies deeper is one unknown field."""
    model = read(tmp_path, layer(shape(1) + packed(VALUES[:1]), extra=delimited(202, nested(10_000))))
    assert [u.path for u in model.map.unknown] == ["layer[0].#202"]


def test_too_many_small_bytes(tmp_path: Path) -> None:
    path = tmp_path / "large.caffemodel"
    size = 100 << 20
    with open(path, "wb") as file:
        file.write(varint(1 << 3 | 2) + varint(size))
        file.truncate(file.tell() + size)
    with pytest.raises(BinaryError, match="more than 64 MiB outside the blobs"):
        read_caffemodel(path)


def test_every_truncation(tmp_path: Path) -> None:
    data = small_model()
    whole = read(tmp_path, data).weights
    for end in range(len(data)):
        try:
            cut = read(tmp_path, data[:end]).weights
        except BinaryError:
            continue
        assert len(cut.layers) < len(whole.layers)  # cut between two layers


def test_every_flipped_bit(tmp_path: Path) -> None:
    data, rng = small_model(), random.Random(0)
    for _ in range(500):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        survive(tmp_path, bytes(broken))


def survive(folder: Path, data: bytes) -> None:
    """Read it, or refuse it with an error of ours."""
    with contextlib.suppress(VggcError):
        model = read(folder, data)
        for entry in model.weights:
            for blob in entry.blobs:
                assert blob.array.size == blob.values.size
        assert "blobs {" not in str(model.net)


fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(data=st.binary(max_size=400))
def test_random_bytes(tmp_path: Path, data: bytes) -> None:
    survive(tmp_path, data)


@fuzz
@given(
    cuts=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=5)
)
def test_mutated_models(tmp_path: Path, cuts: list[tuple[int, int, bytes]]) -> None:
    data = small_model()
    for at, length, new in cuts:
        at %= len(data) + 1
        data = data[:at] + new + data[at + length :]
    survive(tmp_path, data)


# -- the file system ---------------------------------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(VggcError, match=r"no such file; check the path"):
        read_caffemodel(tmp_path / "absent.caffemodel")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(VggcError, match="this is a folder"):
        read_caffemodel(tmp_path)


def test_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(VggcError, match="not a regular file"):
        read_caffemodel(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_impossible_names(name: str) -> None:
    with pytest.raises(VggcError):
        read_caffemodel(name)


def test_forbidden_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.caffemodel"
    path.write_bytes(small_model())

    def deny(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", deny)
    with pytest.raises(VggcError, match="may not be read"):
        read_caffemodel(path)
