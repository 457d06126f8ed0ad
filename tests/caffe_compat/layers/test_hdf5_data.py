"""HDF5Data: batches over several files, shuffling, and files that are not what they claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import Lone, forward, lone


def source(folder: Path, fields: str = "batch_size: 2", extra: str = "", tops: int = 2) -> Lone:
    text = f'type: "HDF5Data" hdf5_data_param {{ source: "list.txt" {fields} }} {extra}'
    return lone(text, tops=tops, folder=str(folder))


def write(folder: Path, *rows: int, **datasets: Any) -> None:
    """Files 0.h5, 1.h5, ... with so many rows; row k of all has the value k."""
    start, names = 0, []
    for index, count in enumerate(rows):
        values = np.arange(start, start + count)
        start += count
        names.append(f"{index}.h5")
        with h5py.File(folder / names[-1], "w") as file:
            file["out0"] = np.repeat(values, 6).reshape(count, 3, 2).astype(np.float64)
            file["out1"] = values.astype(np.int64)
            for name, value in datasets.items():
                file[name] = value
    (folder / "list.txt").write_text("\n".join(names) + "\n")


def labels(it: Lone, batches: int) -> list[int]:
    """The rows of some batches, by their labels; data must agree."""
    found: list[int] = []
    for _ in range(batches):
        data, values = forward(it, [])
        assert (data == values[:, None, None]).all()
        found += values.astype(int).tolist()
    return found


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("rows", [(5,), (3, 2), (1, 1, 3)])
def test_rows_in_order_over_all_files_and_again(tmp_path: Path, rows: tuple[int, ...], batch: int) -> None:
    write(tmp_path, *rows)
    it = source(tmp_path, f"batch_size: {batch}")
    assert it.top_shapes == [(batch, 3, 2), (batch,)]
    assert labels(it, 4) == [row % 5 for row in range(4 * batch)]
    assert [top.dtype for top in forward(it, [])] == [np.float32, np.float32]


@pytest.mark.parametrize("rows", [(6,), (4, 2)])
def test_shuffled_rounds_hold_every_row_once(tmp_path: Path, rows: tuple[int, ...]) -> None:
    write(tmp_path, *rows)
    it = source(tmp_path, "batch_size: 2 shuffle: true")
    rounds = [labels(it, 3) for _ in range(8)]
    assert all(sorted(order) == list(range(6)) for order in rounds)
    assert len({tuple(order) for order in rounds}) > 1
    again = source(tmp_path, "batch_size: 2 shuffle: true")
    assert [labels(again, 3) for _ in range(8)] == rounds


def test_one_top_of_several_datasets(tmp_path: Path) -> None:
    write(tmp_path, 3, unused="text")
    assert source(tmp_path, tops=1).top_shapes == [(2, 3, 2)]


def test_the_list_may_name_files_absolutely(tmp_path: Path) -> None:
    write(tmp_path, 3)
    (tmp_path / "list.txt").write_text(str(tmp_path / "0.h5"))
    assert labels(source(tmp_path), 1) == [0, 1]


@pytest.mark.parametrize(
    ("fields", "extra", "message"),
    [
        ("batch_size: 2", "transform_param { scale: 2 }", "does not transform"),
        ("batch_size: 0", "", "batch_size is 0"),
    ],
)
def test_refused(tmp_path: Path, fields: str, extra: str, message: str) -> None:
    write(tmp_path, 3)
    with pytest.raises(LayerError, match=message):
        source(tmp_path, fields, extra)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("", "lists no file"),
        ("none.h5", '"none.h5" cannot be read'),
        ("list.txt", '"list.txt" cannot be read'),
        ("../0.h5", "outside the folder"),
        ("0.h5 short.h5", ""),
    ],
)
def test_bad_lists(tmp_path: Path, listed: str, message: str) -> None:
    write(tmp_path, 3)
    (tmp_path / "list.txt").write_text(listed)
    if not message:  # found when it is reached
        assert labels(source(tmp_path), 1) == [0, 1]
        return
    with pytest.raises(LayerError, match=message):
        source(tmp_path)


def test_no_list(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match=r'"list\.txt" cannot be read'):
        source(tmp_path)


def replace_labels(path: Path, **arguments: Any) -> None:
    with h5py.File(path, "a") as file:
        del file["out1"]
        file.create_dataset("out1", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": np.arange(4)}, "3 and 4 rows"),
        ({"data": 1.0}, r"has shape \(\)"),
        ({"data": ["a", "b", "c"]}, "type object"),
        ({"data": np.zeros(3, [("x", "f4")])}, "has shape"),
        ({"data": np.zeros(3, bool)}, "type bool"),
        ({"shape": (3, 2**40), "dtype": "f4"}, "claims 13194139533312 bytes but stores 0"),
        ({"shape": (3, 2**30), "dtype": "f4", "chunks": (1, 1024)}, "but stores 0"),
    ],
)
def test_bad_datasets(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    write(tmp_path, 3)
    replace_labels(tmp_path / "0.h5", **arguments)
    with pytest.raises(LayerError, match=message):
        source(tmp_path)


def test_missing_dataset(tmp_path: Path) -> None:
    write(tmp_path, 3)
    with pytest.raises(LayerError, match=r'dataset "out2" of "0\.h5" does not exist'):
        source(tmp_path, tops=3)


def test_no_rows(tmp_path: Path) -> None:
    write(tmp_path, 0)
    with pytest.raises(LayerError, match="have 0 rows"):
        source(tmp_path)


def test_rows_of_another_shape_in_a_later_file(tmp_path: Path) -> None:
    write(tmp_path, 2, 2)
    with h5py.File(tmp_path / "1.h5", "a") as file:
        del file["out0"]
        file["out0"] = np.zeros((2, 6))
    it = source(tmp_path)
    with pytest.raises(LayerError, match=r'in "1\.h5"'):
        labels(it, 2)


@pytest.mark.parametrize("kind", ["link", "raw", "virtual"])
def test_data_in_another_file_is_not_followed(tmp_path: Path, kind: str) -> None:
    write(tmp_path, 3)
    elsewhere = tmp_path / "other.h5"
    (tmp_path / "0.h5").rename(elsewhere)
    with h5py.File(tmp_path / "0.h5", "w") as file:
        file["out0"] = np.zeros((3, 3, 2))
        if kind == "link":
            file["out1"] = h5py.ExternalLink("other.h5", "out1")
        elif kind == "raw":
            file.create_dataset("out1", (3,), "f4", external=[(str(elsewhere), 0, 12)])
        else:
            layout = h5py.VirtualLayout((3,), "f4")
            layout[:] = h5py.VirtualSource(str(elsewhere), "out1", (3,))
            file.create_virtual_dataset("out1", layout)
    with pytest.raises(LayerError, match="lies in another file"):
        source(tmp_path)


@pytest.mark.parametrize("keep", [0, 8, 100, 2000])
def test_cut_files(tmp_path: Path, keep: int) -> None:
    write(tmp_path, 3)
    path = tmp_path / "0.h5"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LayerError, match=r'"0\.h5" cannot be read'):
        source(tmp_path)
