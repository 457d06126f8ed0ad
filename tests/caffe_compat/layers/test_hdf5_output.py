"""HDF5Output: the file it writes."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import Lone, arrays, forward, lone


def output(folder: Path, *shapes: tuple[int, ...], name: str = "out.h5") -> Lone:
    return lone(f'type: "HDF5Output" hdf5_output_param {{ file_name: "{name}" }}', *shapes, tops=0, folder=str(folder))


def test_file_and_its_replacement(tmp_path: Path) -> None:
    it = output(tmp_path, (2, 3), (2,))
    assert not list(tmp_path.iterdir())
    for seed in (0, 1):
        values = [array.astype(np.float32) for array in arrays((2, 3), (2,), seed=seed)]
        assert forward(it, values, dtype=np.float32) == []
        with h5py.File(tmp_path / "out.h5") as file:
            assert sorted(file) == ["data", "label"]
            assert file["data"].dtype == np.float32
            np.testing.assert_array_equal(file["data"], values[0].reshape(2, 3, 1, 1))
            np.testing.assert_array_equal(file["label"], values[1].reshape(2, 1, 1, 1))
        assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out.h5").mkdir()
    with pytest.raises(LayerError, match=r'"out\.h5" cannot be written'):
        forward(output(tmp_path, (2, 3), (2,)), arrays((2, 3), (2,)))
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]


@pytest.mark.parametrize(
    ("shapes", "name", "message"),
    [
        (((2, 3), (3,)), "o.h5", "first dimension"),
        (((2, 1, 1, 1, 3), (2,)), "o.h5", "allows 4"),
        (((2, 3), (2,)), "../o.h5", "outside the folder"),
        (((2, 3), (2,)), "", "no file is named"),
    ],
)
def test_refused(tmp_path: Path, shapes: tuple[tuple[int, ...], ...], name: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        output(tmp_path, *shapes, name=name)
