"""Labelled images one after another."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from caffe_compat.data.lists import ImageList
from caffe_compat.data.records import open_database
from caffe_compat.data.sources import ListSource, RecordSource, begin, side_by_side
from caffe_compat.errors import FormatError, LayerError, VggcError
from caffe_compat.schema import pb
from tests.caffe_compat.data.folders import datum, images, png, write_images, write_lmdb

PICTURES = images(5)


def listed(folder: Path, shuffle: np.random.Generator | None = None, **more: object) -> ListSource:
    for index, picture in enumerate(PICTURES):
        (folder / f"{index}.png").write_bytes(png(picture))
    entries = ImageList(tuple(f"{index}.png" for index in range(5)), np.arange(5, dtype=np.int32))
    return ListSource(entries, lambda name: folder / name, shuffle=shuffle, **more)  # type: ignore[arg-type]


def test_records_of_a_database(tmp_path: Path) -> None:
    source = RecordSource(open_database(write_images(tmp_path / "db", PICTURES)))
    for entry, index in zip(source.take(7), [0, 1, 2, 3, 4, 0, 1], strict=True):
        item = source.load(entry)
        assert item.label == index
        np.testing.assert_array_equal(item.image, PICTURES[index])


def test_encoded_records_are_forced_to_a_number_of_channels(tmp_path: Path) -> None:
    record = pb.Datum(data=png(PICTURES[0]), encoded=True, label=3).SerializeToString()
    database = open_database(write_lmdb(tmp_path / "db", {b"a": record}))
    shapes = [
        RecordSource(database, color).load(RecordSource(database).peek()).image.shape for color in (None, True, False)
    ]
    assert shapes == [(3, 6, 5), (3, 6, 5), (1, 6, 5)]


@pytest.mark.parametrize("value", [b"", b"no record", datum(PICTURES[0])[:-9], datum(PICTURES[0])[:20]])
def test_a_bad_record_is_named(tmp_path: Path, value: bytes) -> None:
    source = RecordSource(open_database(write_lmdb(tmp_path / "db", {b"00000003_x.jpg": value})))
    with pytest.raises(FormatError, match=r'record "00000003_x\.jpg": '):
        source.load(source.peek())


def test_files_of_a_list(tmp_path: Path) -> None:
    source = listed(tmp_path)
    source.skip(3)
    assert source.peek() == 3
    items = [source.load(entry) for entry in source.take(4)]
    assert [item.label for item in items] == [3, 4, 0, 1]
    np.testing.assert_array_equal(items[2].image, PICTURES[0])
    assert listed(tmp_path, color=False, size=(2, 3)).load(0).image.shape == (1, 2, 3)


def test_every_round_of_a_shuffled_list_has_every_image(tmp_path: Path) -> None:
    source, again = (listed(tmp_path, np.random.default_rng(4)) for _ in range(2))
    rounds = [source.take(5) for _ in range(20)]
    assert all(sorted(order) == list(range(5)) for order in rounds)
    assert len({tuple(order) for order in rounds}) > 10
    assert [again.take(5) for _ in range(20)] == rounds


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    source = listed(tmp_path)
    (tmp_path / "1.png").write_bytes(b"x")
    (tmp_path / "2.png").unlink()
    with pytest.raises(FormatError, match=r'image "1\.png": an image cannot be decoded'):
        source.load(1)
    with pytest.raises(VggcError, match=r'image "2\.png": no such file'):
        source.load(2)

    def nowhere(name: str) -> Path:
        raise LayerError(f"{name} is outside")

    source.find = nowhere
    with pytest.raises(LayerError, match=r'image "0\.png": 0\.png is outside'):
        source.load(0)


def test_work_side_by_side_keeps_its_order() -> None:
    names = side_by_side(lambda number: (number, threading.current_thread().name), range(200))
    assert [number for number, _ in names] == list(range(200))
    assert all(name.startswith("vggc-images") for _, name in names)
    coming = begin(lambda number: 1 // number, [1, 0])
    assert next(coming) == 1
    with pytest.raises(ZeroDivisionError):
        next(coming)
