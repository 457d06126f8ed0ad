"""Data, ImageData and WindowData without their source: the shapes that are known, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_compat.errors import ConversionError, LayerError
from caffe_compat.schema import pb
from tests.caffe_compat.layers.harness import Lone, lone, session


def data(fields: str = "", tops: int = 2, batch: int = 4, **options: str) -> Lone:
    text = f'type: "Data" data_param {{ source: "lmdb" batch_size: {batch} }} transform_param {{ {fields} }}'
    return lone(text, tops=tops, **options)  # type: ignore[arg-type]


def images(fields: str = "", transform: str = "", tops: int = 2) -> Lone:
    param = f'source: "list.txt" batch_size: 4 {fields}'
    return lone(f'type: "ImageData" image_data_param {{ {param} }} transform_param {{ {transform} }}', tops=tops)


def windows(transform: str, folder: Path, tops: int = 2) -> Lone:
    text = 'type: "WindowData" window_data_param { source: "w.txt" batch_size: 4 }'
    return lone(f"{text} transform_param {{ {transform} }}", tops=tops, folder=str(folder))


def write_mean(folder: Path, *shape: int) -> None:
    blob = pb.BlobProto(data=np.zeros(int(np.prod(shape))))
    blob.num, blob.channels, blob.height, blob.width = shape
    (folder / "mean.binaryproto").write_bytes(blob.SerializeToString())


@pytest.mark.parametrize(
    ("fields", "image"),
    [
        ("crop_size: 7", (3, 7, 7)),
        ("crop_size: 7 mean_value: 1 mean_value: 2", (2, 7, 7)),
        ("crop_size: 7 mean_value: 1", (3, 7, 7)),
        ("crop_size: 7 force_gray: true", (1, 7, 7)),
        ('crop_size: 7 mean_file: "none.binaryproto"', (3, 7, 7)),
        ('crop_size: 7 mean_file: "/home/a/mean.binaryproto"', (3, 7, 7)),
    ],
)
def test_data_from_its_crop(fields: str, image: tuple[int, ...]) -> None:
    assert data(fields).top_shapes == [(4, *image), (4,)]
    assert data(fields, tops=1).top_shapes == [(4, *image)]


@pytest.mark.parametrize(("crop", "image"), [("", (1, 28, 30)), ("crop_size: 28", (1, 28, 28))])
def test_data_from_its_mean(tmp_path: Path, crop: str, image: tuple[int, ...]) -> None:
    write_mean(tmp_path, 1, 1, 28, 30)
    it = data(f'mean_file: "mean.binaryproto" {crop}', folder=str(tmp_path))
    assert it.top_shapes == [(4, *image), (4,)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("", r'size of the images in "lmdb" is not known .* Input layer with top out0, out1'),
        ('mean_file: "m" mean_value: 1 crop_size: 4', "both mean_file and mean_value"),
        ('mean_file: "/etc/hostname"', "not known without reading"),
    ],
)
def test_data_refused(fields: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        data(fields)


def test_data_needs_a_batch_size() -> None:
    with pytest.raises(LayerError, match="batch_size is 0"):
        data("crop_size: 4", batch=0)


def test_a_crop_larger_than_the_mean(tmp_path: Path) -> None:
    write_mean(tmp_path, 1, 3, 8, 8)
    with pytest.raises(LayerError, match="crop_size 9 is larger"):
        data('mean_file: "mean.binaryproto" crop_size: 9', folder=str(tmp_path))


def test_a_mean_of_several_images(tmp_path: Path) -> None:
    write_mean(tmp_path, 2, 3, 8, 8)
    with pytest.raises(LayerError, match=r"must be \(1, C, H, W\)"):
        data('mean_file: "mean.binaryproto"', folder=str(tmp_path))


def test_what_is_not_there_cannot_be_read() -> None:
    for it in (data("crop_size: 4"), images("", "crop_size: 4")):
        with pytest.raises(
            LayerError, match=r'" does not exist; write it, or replace .* Input layer with top out0, out1'
        ):
            it.layer.forward([], [])
    with pytest.raises(ConversionError, match="an ONNX model takes it as input"):
        session(data("crop_size: 4"))


def test_2013_labels_have_four_axes() -> None:
    assert data("crop_size: 7", profile="dec2013").top_shapes == [(4, 3, 7, 7), (4, 1, 1, 1)]


@pytest.mark.parametrize(("fields", "tops", "message"), [("mirror: true", 2, "mirror without"), ("", 1, "2 top")])
def test_2013_refused(fields: str, tops: int, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        data(fields, tops=tops, profile="dec2013")


def test_2013_a_crop_is_smaller_than_the_image(tmp_path: Path) -> None:
    write_mean(tmp_path, 1, 3, 8, 8)
    with pytest.raises(LayerError, match="crop_size 8 is not smaller"):
        data('mean_file: "mean.binaryproto" crop_size: 8', profile="dec2013", folder=str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "transform", "image"),
    [
        ("new_height: 6 new_width: 8", "", (3, 6, 8)),
        ("new_height: 6 new_width: 8", "crop_size: 5", (3, 5, 5)),
        ("is_color: false", "crop_size: 5", (1, 5, 5)),
        ("new_height: 6 new_width: 8 is_color: false", "mean_value: 4", (1, 6, 8)),
    ],
)
def test_image_data(fields: str, transform: str, image: tuple[int, ...]) -> None:
    assert images(fields, transform).top_shapes == [(4, *image), (4,)]


@pytest.mark.parametrize(
    ("fields", "transform", "message"),
    [
        ("", "", "not known without reading one"),
        ("new_height: 6", "", "new_height 6 without new_width"),
        ("new_width: 6", "", "new_width 6 without new_height"),
        ("new_height: 6 new_width: 8", "crop_size: 7", "larger than new_height 6 x new_width 8"),
        ("", "crop_size: 5 mean_value: 1 mean_value: 2", "2 mean_value entries for 3"),
    ],
)
def test_image_data_refused(fields: str, transform: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        images(fields, transform)


def test_image_data_has_two_tops() -> None:
    with pytest.raises(LayerError, match="2 top"):
        images("", "crop_size: 5", tops=1)


def test_window_data(tmp_path: Path) -> None:
    assert windows("crop_size: 5", tmp_path).top_shapes == [(4, 3, 5, 5), (4,)]
    with pytest.raises(LayerError, match=r'w\.txt" does not exist'):
        windows("crop_size: 5", tmp_path).layer.forward([], [])
    (tmp_path / "w.txt").write_text("# 0\n/images/a.jpg\n1\n20\n30\n0\n")
    assert windows("crop_size: 5 mean_value: 3", tmp_path).top_shapes == [(4, 1, 5, 5), (4,)]


def test_window_data_needs_a_crop(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="crop_size is 0"):
        windows("", tmp_path)
