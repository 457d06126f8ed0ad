"""Weights from HDF5, safetensors and state dicts, and files of these formats that are not what they claim."""

from __future__ import annotations

import contextlib
import json
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from caffe_compat.errors import BinaryError, FormatError, VggcError
from caffe_compat.tensor_weights import in_order
from caffe_compat.weight_files import read_weights
from caffe_compat.weights import Weights
from tests.caffe_compat.wire_files import GOLDEN, numbers, small_model

VALUES = numbers(2, 3)


def names(weights: Weights) -> list[tuple[str, tuple[str, ...]]]:
    return [(layer.name, layer.names) for layer in weights]


def refused(path: Path) -> FormatError:
    with pytest.raises(FormatError) as caught:
        read_weights(path)
    assert caught.value.remedy
    assert caught.value.where.source == str(path)
    return caught.value


@pytest.mark.parametrize("suffix", [".caffemodel", ".h5", ".bin"])
def test_content_decides_not_the_name(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(small_model())
    assert read_weights(tmp_path / f"a{suffix}").format == "caffemodel"
    (tmp_path / f"b{suffix}").write_bytes((GOLDEN / "exact.h5").read_bytes())
    assert read_weights(tmp_path / f"b{suffix}").format == "hdf5"


# -- HDF5 --------------------------------------------------------------------------------------------------


@pytest.fixture
def h5(tmp_path: Path):
    """A file to fill; read it after closing."""
    with h5py.File(tmp_path / "w.h5", "w") as file:
        yield file


def closed(file: h5py.File) -> Path:
    path = Path(file.filename)
    file.close()
    return path


def test_hdf5_equals_caffemodel() -> None:
    one, other = read_weights(GOLDEN / "exact.h5"), read_weights(GOLDEN / "exact.caffemodel")
    for layer in other:
        (same,) = [entry for entry in one if entry.name == layer.name]
        for blob, expected in zip(same.blobs, layer.blobs, strict=True):
            np.testing.assert_array_equal(blob.array, expected.array)


def test_hdf5_leaves_out_shared_blobs() -> None:
    found = dict(names(read_weights(GOLDEN / "shared.h5")))
    assert found == {"in": (), "s0": ("0", "1"), "s1": ("1",), "s2": ("1",)}


@pytest.mark.parametrize("userblock", [0, 512, 1024])
def test_hdf5_values_are_views_of_the_file(tmp_path: Path, userblock: int) -> None:
    path = tmp_path / "w.h5"
    with h5py.File(path, "w", userblock_size=userblock) as file:
        file["data/ip/0"] = VALUES
    blob = read_weights(path).layers[0].blobs[0]
    assert path.read_bytes()[blob.offset : blob.offset + 24] == VALUES.tobytes()
    np.testing.assert_array_equal(blob.array, VALUES)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("<f2", "f2"), ("<f4", "f4"), ("<f8", "f8"), (">f4", "f4"), (">f8", "f8"), ("<i4", "f4"), ("u1", "f4")],
)
@pytest.mark.parametrize("options", [{}, {"chunks": (2, 2)}, {"compression": "gzip", "shuffle": True}])
def test_hdf5_number_types(h5: h5py.File, dtype: str, expected: str, options: dict[str, Any]) -> None:
    h5.create_dataset("data/ip/0", data=(VALUES * 10 + 20).astype(dtype), **options)
    blob = read_weights(closed(h5)).layers[0].blobs[0]
    assert blob.values.dtype == np.dtype(expected)
    np.testing.assert_array_equal(blob.array, (VALUES * 10 + 20).astype(dtype).astype(expected))


def test_hdf5_slash_in_a_layer_name(h5: h5py.File) -> None:
    h5["data/inception_3a/1x1/0"] = VALUES
    h5["data/inception_3a/1x1/1"] = VALUES[0]
    h5.create_group("data/pool")
    weights = read_weights(closed(h5))
    assert names(weights) == [("inception_3a/1x1", ("0", "1")), ("pool", ())]


def test_hdf5_order_of_many_blobs(h5: h5py.File) -> None:
    for index in range(12):
        h5[f"data/ip/{index}"] = np.float32([index])
    assert [blob.values[0] for blob in read_weights(closed(h5)).layers[0].blobs] == list(range(12))


def test_hdf5_gradients_are_noted(h5: h5py.File) -> None:
    h5["data/ip/0"] = h5["diff/ip/0"] = VALUES
    assert read_weights(closed(h5)).notes == ("gradients (/diff) are in the file and were not read",)


def _external_link(file: h5py.File) -> None:
    file["data/ip/0"] = h5py.ExternalLink("other.h5", "/data")


def _soft_link(file: h5py.File) -> None:
    file["data/ip/0"] = h5py.SoftLink("/elsewhere")


def _soft_data(file: h5py.File) -> None:
    file["data"] = h5py.SoftLink("/elsewhere")


def _cycle(file: h5py.File) -> None:
    group = file.create_group("data/a")
    group["b"] = group


def _deep(file: h5py.File) -> None:
    file.create_group("data/" + "/".join("x" * 40))


def _external_storage(file: h5py.File) -> None:
    file.create_dataset("data/ip/0", shape=(6,), dtype="f4", external=[("/etc/passwd", 0, 24)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(6,), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=(6,))
    file.create_virtual_dataset("data/ip/0", layout)


def _bomb(file: h5py.File) -> None:
    file.create_dataset("data/ip/0", shape=(2**40,), dtype="f4", chunks=(2**20,), compression="gzip")


def _large_chunk(file: h5py.File) -> None:
    file.create_dataset("data/ip/0", shape=(1,), maxshape=(None,), dtype="f4", chunks=(2**29,))


def _never_written(file: h5py.File) -> None:
    file.create_dataset("data/ip/0", shape=(2**33,), dtype="f4")


def _many_bombs(file: h5py.File) -> None:
    for index in range(10):
        file.create_dataset(f"data/ip/{index}", data=np.zeros(4 << 20, np.float32), compression="gzip")


HOSTILE_H5 = {
    "external link": (_external_link, "ExternalLink"),
    "soft link": (_soft_link, "SoftLink"),
    "soft link to the data": (_soft_data, "SoftLink"),
    "group in itself": (_cycle, "nested in themselves"),
    "deep": (_deep, "too deep"),
    "values in another file": (_external_storage, "another file"),
    "virtual dataset": (_virtual, "another file"),
    "compressed bomb": (_bomb, "far more than the file"),
    "one huge chunk": (_large_chunk, "far more than the file"),
    "never written": (_never_written, "far more than the file"),
    "many bombs": (_many_bombs, "far more than the file"),
    "references": (lambda f: f.create_dataset("data/ip/0", data=[f.ref], dtype=h5py.ref_dtype), "holds object"),
    "text": (lambda f: f.create_dataset("data/ip/0", data="text"), "holds object"),
    "compound": (lambda f: f.create_dataset("data/ip/0", data=np.zeros(2, [("a", "f4")])), "holds"),
    "booleans": (lambda f: f.create_dataset("data/ip/0", data=[True]), "holds bool"),
    "no values": (lambda f: f.create_dataset("data/ip/0", data=h5py.Empty("f4")), "no values"),
    "not a number": (lambda f: f.create_dataset("data/ip/weight", data=VALUES), '"weight" is no parameter blob'),
    "leading zero": (lambda f: f.create_dataset("data/ip/00", data=VALUES), '"00" is no parameter blob'),
    "training data": (lambda f: f.create_dataset("data", data=VALUES), "training data"),
    "no layers": (lambda f: f.create_group("data"), "has no layers"),
    "no data": (lambda f: f.create_group("model_weights"), "no group /data"),
    "blob instead of layer": (lambda f: f.create_dataset("data/0", data=VALUES), "is no group"),
}


@pytest.mark.parametrize("case", HOSTILE_H5)
def test_hostile_hdf5(h5: h5py.File, case: str) -> None:
    fill, what = HOSTILE_H5[case]
    fill(h5)
    assert what in refused(closed(h5)).what


def test_damaged_hdf5(tmp_path: Path) -> None:
    data, rng = (GOLDEN / "exact.h5").read_bytes(), random.Random(0)
    path = tmp_path / "w.h5"
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 5)):
            broken[rng.randrange(len(data))] = rng.choice([0, 1, 127, 128, 255])
        survive(path, bytes(broken))
    for end in range(0, len(data), 97):
        survive(path, data[:end])


def survive(path: Path, data: bytes) -> None:
    """Read it, or refuse it with an error of ours."""
    path.write_bytes(data)
    with contextlib.suppress(VggcError):
        for layer in read_weights(path):
            for blob in layer.blobs:
                assert blob.array.size == blob.values.size


# -- safetensors -------------------------------------------------------------------------------------------


def safetensors(path: Path, header: Any, payload: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)
    return path


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {
        "conv.1x1.weight": VALUES,
        "conv.1x1.bias": VALUES[0],
        "ip.0": np.float64([1.5]),
        "half.1": np.float16([2]),
    }
    save_file(tensors, path, {"caffe_net": 'name: "n"', "other": "kept"})
    weights = read_weights(path)
    assert weights.metadata == {"caffe_net": 'name: "n"', "other": "kept"}
    assert sorted(names(weights)) == [("conv.1x1", ("weight", "bias")), ("half", ("1",)), ("ip", ("0",))]
    data = path.read_bytes()
    for layer in weights:
        for blob, name in zip(layer.blobs, layer.names, strict=True):
            expected = tensors[f"{layer.name}.{name}"]
            np.testing.assert_array_equal(blob.array, expected)
            assert blob.values.dtype == expected.dtype
            assert data[blob.offset : blob.offset + blob.values.nbytes] == expected.tobytes()


@pytest.mark.parametrize("size", [0x280, 0x380, 0x480, 0x580, 0x8B1F, 0x5A42])
def test_a_header_length_is_not_taken_for_another_kind_of_file(tmp_path: Path, size: int) -> None:
    """The first bytes are those of a pickle, of gzip or of bzip2."""
    header = json.dumps({"a.b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(size)
    (tmp_path / "m").write_bytes(struct.pack("<Q", size) + header + struct.pack("<f", 2))
    assert read_weights(tmp_path / "m").format == "safetensors"


def test_safetensors_bfloat16_is_widened(tmp_path: Path) -> None:
    tensor = torch.tensor([1.0, -2.5, 3e38]).bfloat16()
    path = safetensors(tmp_path / "w", {"a.0": entry("BF16", [3], [0, 6])}, tensor.view(torch.int16).numpy().tobytes())
    blob = read_weights(path).layers[0].blobs[0]
    np.testing.assert_array_equal(blob.values, tensor.float().numpy())


def test_safetensors_empty_tensor(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "w", {"a.0": entry(shape=[0, 3], offsets=[0, 0])})
    assert read_weights(path).layers[0].blobs[0].shape == (0, 3)


HEADERS = {
    "offsets beyond the file": {"a.0": entry(shape=[4], offsets=[0, 16])},
    "shape larger than its bytes": {"a.0": entry(shape=[2**60, 4])},
    "negative size": {"a.0": entry(shape=[-2])},
    "negative offset": {"a.0": entry(offsets=[-8, 0])},
    "begin after end": {"a.0": entry(shape=[0], offsets=[8, 0])},
    "fraction": {"a.0": entry(shape=[2.0])},
    "truth value": {"a.0": entry(shape=[True, 2])},
    "hole": {"a.0": entry(shape=[1], offsets=[4, 8])},
    "overlap": {"a.0": entry(), "a.1": entry(shape=[1], offsets=[4, 8])},
    "bytes left over": {"a.0": entry(shape=[1], offsets=[0, 4])},
    "integers": {"a.0": entry("I64", [1])},
    "unknown type": {"a.0": entry("F128", [1])},
    "no dtype": {"a.0": {"shape": [2], "data_offsets": [0, 8]}},
    "surplus key": {"a.0": entry(surplus=1)},
    "three offsets": {"a.0": entry(offsets=[0, 4, 8])},
    "40 axes": {"a.0": entry(shape=[1] * 39 + [2])},
    "no layer": {"weight": entry()},
    "not a table": {"a.0": 3},
    "metadata of numbers": {"__metadata__": {"a": 1}, "a.0": entry()},
    "twice": b'{"a.0":{},"a.0":{}}',
    "not JSON": b'{"a.0":',
    "not UTF-8": b'{"\xff":1}',
    "deep": b'{"a":' + b"[" * 100_000,
    "long number": b'{"a":' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("case", HEADERS)
def test_hostile_safetensors(tmp_path: Path, case: str) -> None:
    refused(safetensors(tmp_path / "w.safetensors", HEADERS[case], bytes(8)))


@pytest.mark.parametrize("size", [2**40, 17 << 20])
def test_safetensors_header_length(tmp_path: Path, size: int) -> None:
    path = tmp_path / "w"
    path.write_bytes(struct.pack("<Q", size) + b'{"a' + bytes(20))
    assert isinstance(refused(path), BinaryError)


# -- torch -------------------------------------------------------------------------------------------------


def saved(path: Path, table: Any, **options: Any) -> Path:
    torch.save(table, path, **options)
    return path


def test_state_dict(tmp_path: Path) -> None:
    table = {
        "bn.scale_factor": torch.tensor([3.0]),
        "bn.variance": torch.ones(2),
        "bn.mean": torch.zeros(2),
        "ip.bias": torch.tensor([1.0, 2.0]).double(),
        "ip.weight": torch.arange(6.0).reshape(2, 3).t(),
        "half.0": torch.tensor([1.5]).half(),
        "brain.0": torch.tensor([2.5]).bfloat16(),
        "grad.0": torch.nn.Parameter(torch.tensor([1.0])),
    }
    weights = read_weights(saved(tmp_path / "w.pt", table))
    assert weights.format == "pt"
    assert dict(names(weights))["bn"] == ("mean", "variance", "scale_factor")
    for layer in weights:
        for blob, name in zip(layer.blobs, layer.names, strict=True):
            np.testing.assert_array_equal(blob.array, table[f"{layer.name}.{name}"].detach().float().numpy())


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("trap-was-sprung"),))


TABLES: dict[str, Any] = {
    "list": [torch.ones(1)],
    "tensor": torch.ones(1),
    "nested": {"state_dict": {"a.0": torch.ones(1)}},
    "number": {"a.0": 1.0},
    "integers": {"a.0": torch.ones(1, dtype=torch.int64)},
    "sparse": {"a.0": torch.ones(2, 2).to_sparse()},
    "no values": {"a.0": torch.ones(2, device="meta")},
    "repeated": {"a.0": torch.ones(1).expand(10**12)},
    "no layer": {"weight": torch.ones(1)},
    "numbered": {1: torch.ones(1)},
    "code": {"a.0": Trap()},
}


@pytest.mark.parametrize("case", TABLES)
def test_other_torch_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    refused(saved(tmp_path / "w.pt", TABLES[case]))
    assert not (tmp_path / "trap-was-sprung").exists()


def test_old_torch_format(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"a.0": torch.ones(1)}, _use_new_zipfile_serialization=False)
    assert "pickle" in refused(path).what


def test_compressed_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    assert "compressed" in refused(tmp_path / "w.pt").what


@pytest.mark.parametrize("data", [b"PK\x03\x04", b"PK\x03\x04" + bytes(100)])
def test_broken_archive(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(data)
    refused(tmp_path / "w.pt")


def test_damaged_state_dict(tmp_path: Path) -> None:
    data, rng = (
        saved(tmp_path / "a.pt", {"a.weight": torch.ones(3, 4), "a.bias": torch.ones(3)}).read_bytes(),
        random.Random(0),
    )
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 5)):
            broken[rng.randrange(len(data))] = rng.choice([0, 1, 127, 128, 255])
        survive(tmp_path / "w.pt", bytes(broken))


# -- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"bias", "weight"}, ("weight", "bias")),
        ({"10", "2", "0"}, ("0", "2", "10")),
        ({"scale_factor", "mean", "variance"}, ("mean", "variance", "scale_factor")),
        ({"b_c", "2", "W_xc"}, ("W_xc", "b_c", "2")),
        ({"zeta", "bias", "alpha", "weight"}, ("weight", "bias", "alpha", "zeta")),
    ],
)
def test_order_of_blob_names(given: set[str], expected: tuple[str, ...]) -> None:
    assert in_order(given) == expected
