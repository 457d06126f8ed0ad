"""Opening image sets of every kind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from caffe_compat.data.images import encode_image
from caffe_compat.errors import VggcError
from caffe_compat.schema import pb
from repro.datasets import DataError, ImageSet, open_images
from tests.caffe_compat.data.folders import datum, write_leveldb, write_lmdb
from tests.repro.pictures import smooth, tree, write
from tests.shared import python

Write = Callable[[Path, dict[bytes, bytes]], Path]


def described(images: ImageSet) -> list[tuple[str, int]]:
    return [(item.name, item.label) for item in images.items]


# -- digits ----------------------------------------------------------------------------------------------------


def test_the_digits() -> None:
    train, val, whole = (open_images("digits", split=split) for split in ("train", "val", None))
    assert (len(train), len(val), len(whole)) == (1438, 359, 1797)
    assert sorted(described(train) + described(val)) == sorted(described(whole))
    assert train.classes == tuple("0123456789")
    assert set(val.items.labels) == set(range(10))
    assert train.read(7).shape == (32, 32, 3)
    assert train.size(7) == (32, 32)
    assert train.stored(7)[:3] == b"\xff\xd8\xff"


def test_the_digits_are_coloured_and_dark_on_light() -> None:
    image = open_images("digits").read(0).astype(int)
    assert image[0, 0].min() > 140
    assert image[:, 10:22].min(axis=(0, 1)).max() < 120
    assert np.ptp(image[0, 0]) > 5


def test_the_digits_are_the_same_in_another_process() -> None:
    code = "import hashlib; from repro.datasets import open_images as o; "
    code += "print(hashlib.sha256(b''.join(o('digits').files)).hexdigest())"
    own = hashlib.sha256(b"".join(open_images("digits").files)).hexdigest()  # type: ignore[attr-defined]
    assert python("-c", code).stdout.strip() == own


# -- folders ---------------------------------------------------------------------------------------------------


def test_a_folder_a_class(tmp_path: Path) -> None:
    images = open_images(tree(tmp_path, b=1, a=2))
    assert described(images) == [("a/0.png", 0), ("a/1.png", 0), ("b/0.png", 1)]
    assert images.classes == ("a", "b")
    assert images.read(1).shape == (11, 12, 3)
    assert images.size(1) == (11, 12)


def test_train_and_val(tmp_path: Path) -> None:
    tree(tmp_path / "train", a=1, b=1, c=2)
    tree(tmp_path / "val", b=1, c=1)
    assert described(open_images(tmp_path, split="train"))[-1] == ("c/1.png", 2)
    val = open_images(tmp_path, split="val")
    assert described(val) == [("b/0.png", 1), ("c/0.png", 2)]
    assert val.classes == ("a", "b", "c")
    with pytest.raises(DataError, match="this folder holds train and val; name one of them"):
        open_images(tmp_path)


def test_classes_that_train_has_not(tmp_path: Path) -> None:
    tree(tmp_path / "train", a=1)
    tree(tmp_path / "val", a=1, z=1)
    with pytest.raises(DataError, match=r'val: 1 class\(es\) that are not among those for training, "z"'):
        open_images(tmp_path, split="val")


def test_empty_class_folders(tmp_path: Path) -> None:
    tree(tmp_path, a=1, b=0, c=0, d=0, e=0)
    with pytest.raises(DataError, match=r'4 class folder\(s\) without an image, "b", "c", "d", \.\.\.; put'):
        open_images(tmp_path)


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in folders"):
        open_images(tmp_path)
    with pytest.raises(DataError, match="no such images"):
        open_images(tmp_path / "none")
    with pytest.raises(DataError, match='no split called "dev"'):
        open_images("digits", split="dev")


def test_a_split_by_name_stays_when_images_come(tmp_path: Path) -> None:
    tree(tmp_path, a=20, b=20)
    val = described(open_images(tmp_path, split="val", held_out=0.25))
    train = described(open_images(tmp_path, split="train", held_out=0.25))
    assert sorted(val + train) == sorted(described(open_images(tmp_path)))
    assert 3 <= len(val) <= 18
    tree(tmp_path, c=5)
    assert [item for item in described(open_images(tmp_path, split="val", held_out=0.25)) if item[1] < 2] == val
    with pytest.raises(DataError, match='no image is left for "val"'):
        open_images(tmp_path, split="val", held_out=0)


# -- lists -----------------------------------------------------------------------------------------------------


def test_a_list(tmp_path: Path) -> None:
    tree(tmp_path, a=2)
    (tmp_path / "list.txt").write_text("a/1.png 3\na/0.png -1\n")
    images = open_images(tmp_path / "list.txt")
    assert described(images) == [("a/1.png", 3), ("a/0.png", -1)]
    assert images.classes == ("",) * 4
    assert images.read(0).shape == (11, 12, 3)
    assert images.read(1).shape == (10, 12, 3)


def test_a_list_of_images_elsewhere(tmp_path: Path) -> None:
    tree(tmp_path / "images", a=1)
    (tmp_path / "list.txt").write_text("0.png 1\n")
    inside = tmp_path / "images" / "a"
    for images in (open_images(tmp_path / "list.txt", root=inside), open_images(inside, labels=tmp_path / "list.txt")):
        assert described(images) == [("0.png", 1)]
        assert images.read(0).shape == (10, 12, 3)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.png", "a/../../x.png"])
def test_names_that_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "list.txt").write_text(f"a..b/../c.png 0\n{name} 0\n")
    with pytest.raises(DataError, match=r"list\.txt: \".*\" is outside the folder"):
        open_images(tmp_path / "list.txt")


def test_labels_beyond_belief(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png 2000000000\n")
    with pytest.raises(DataError, match=r'"a\.png" has label 2000000000'):
        open_images(tmp_path / "list.txt")


def test_files_that_are_gone_are_named(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png 0\n")
    images = open_images(tmp_path / "list.txt")
    for look in (images.read, images.size):
        with pytest.raises(DataError, match=r"/a\.png: no such file"):
            look(0)


def test_the_size_of_a_file_with_a_long_head(tmp_path: Path) -> None:
    jpeg = encode_image(smooth(20, 30), "jpg")
    padding = b"\xff\xfe\xff\xff" + bytes(0xFFFD)
    write(tmp_path / "a" / "x.png", smooth(4, 4))
    (tmp_path / "a" / "x.png").write_bytes(jpeg[:2] + 3 * padding + jpeg[2:])
    assert open_images(tmp_path).size(0) == (20, 30)


# -- databases -------------------------------------------------------------------------------------------------

COLOUR = np.random.default_rng(0).integers(0, 256, (3, 5, 6), dtype=np.uint8)
RECORDS = {
    b"00_raw": datum(COLOUR, 2),
    b"01_grey": datum(COLOUR[:1], 0),
    b"02_encoded": pb.Datum(data=encode_image(smooth(7, 8), "png"), encoded=True, label=1).SerializeToString(),
    b"03_unlabelled": datum(COLOUR, -1),
    b"04_large": datum(np.full((3, 60, 60), 9, np.uint8), 4),
    b"05_\xff": datum(COLOUR + 1, 3),
}


@pytest.mark.parametrize("make", [write_lmdb, write_leveldb])
def test_a_database(tmp_path: Path, make: Write) -> None:
    images = open_images(make(tmp_path / "db", RECORDS))
    labels = [2, 0, 1, -1, 4, 3]
    names = ["00_raw", "01_grey", "02_encoded", "03_unlabelled", "04_large", r"05_\xff"]
    assert described(images) == list(zip(names, labels, strict=True))
    assert images.classes == ("",) * 5
    np.testing.assert_array_equal(images.read(5), COLOUR.transpose(1, 2, 0) + 1)
    np.testing.assert_array_equal(images.read(0), COLOUR.transpose(1, 2, 0))
    np.testing.assert_array_equal(images.read(1), np.repeat(COLOUR[:1].transpose(1, 2, 0), 3, 2))
    np.testing.assert_array_equal(images.read(2), smooth(7, 8))
    assert [images.size(index) for index in (0, 2, 4)] == [(5, 6), (7, 8), (60, 60)]
    assert [item.name for item in images.items[4:]] == names[4:]


def test_the_data_file_of_a_database(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "db", RECORDS)
    assert len(open_images(tmp_path / "db" / "data.mdb")) == 6


def test_databases_for_train_and_val(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "train", RECORDS)
    write_lmdb(tmp_path / "val", {b"x": datum(COLOUR, 4)})
    assert len(open_images(tmp_path, split="train")) == 6
    assert described(open_images(tmp_path, split="val")) == [("x", 4)]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (pb.Datum(channels=1, height=1, width=1, float_data=[0.5]), r'record "a": a record of floats'),
        (pb.Datum(channels=3, height=2, width=2, data=b"abc"), r'record "a": a record states shape \(3, 2, 2\)'),
        (pb.Datum(channels=2, height=1, width=1, data=b"ab"), r"an image of shape \(1, 1, 2\)"),
        (pb.Datum(encoded=True, data=b"abc"), r'record "a": an image cannot be decoded'),
    ],
)
def test_records_that_are_no_image(tmp_path: Path, record: pb.Datum, message: str) -> None:
    images = open_images(write_lmdb(tmp_path / "db", {b"a": record.SerializeToString()}))
    with pytest.raises(DataError, match=message):
        images.read(0)


def test_databases_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(VggcError, match="a record"):
        open_images(write_lmdb(tmp_path / "db", {b"a": b"\xff\xff"}))
    with pytest.raises(DataError, match="holds no record"):
        open_images(write_lmdb(tmp_path / "empty", {}))
