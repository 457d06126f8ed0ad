"""Mean images: those that compute_image_mean wrote, byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_compat.data.mean import mean_of
from caffe_compat.data.records import open_database
from caffe_compat.errors import FormatError
from caffe_compat.reading import read_mean
from tests.caffe_compat.data.folders import RECORDED, datum, images, write_images, write_lmdb


@pytest.mark.parametrize(
    ("name", "mean"), [("lmdb_raw", "mean.binaryproto"), ("lmdb_gray_resized", "mean_gray.binaryproto")]
)
def test_recorded_means(tmp_path: Path, name: str, mean: str) -> None:
    found = mean_of(open_database(RECORDED / name))
    found.write(tmp_path / mean)
    assert (tmp_path / mean).read_bytes() == (RECORDED / mean).read_bytes()
    np.testing.assert_array_equal(read_mean(tmp_path / mean)[0], found.values)


def test_sums_are_kept_in_float32_by_the_order_of_the_keys(tmp_path: Path) -> None:
    pictures = images(600, 1, 2, 2)
    told: list[int] = []
    found = mean_of(open_database(write_images(tmp_path / "db", pictures)), told.append)
    total = np.zeros((1, 2, 2), np.float32)
    for picture in pictures:
        total = total + picture.astype(np.float32)
    np.testing.assert_array_equal(found.values, total / np.float32(600))
    assert (found.count, told) == (600, [256, 512, 600])
    np.testing.assert_allclose(found.channels, [np.mean(pictures)], rtol=1e-6)


def test_encoded_images_are_decoded() -> None:
    png, raw = (mean_of(open_database(RECORDED / name)).values for name in ("lmdb_png", "lmdb_raw"))
    np.testing.assert_array_equal(png, raw)


def test_shapes_that_differ(tmp_path: Path) -> None:
    records = {b"a": datum(images(1, 3, 4, 6)[0]), b"b": datum(images(1, 3, 6, 4)[0])}
    message = r'record "b" has shape \(3, 6, 4\), the first one \(3, 4, 6\); convert .*--resize-height'
    with pytest.raises(FormatError, match=message):
        mean_of(open_database(write_lmdb(tmp_path / "db", records)))


def test_an_empty_database(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds no record"):
        mean_of(open_database(write_lmdb(tmp_path / "db", {})))
