"""ImageData: batches from a list of files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import caffe_compat as cc
from caffe_compat.errors import LayerError
from tests.caffe_compat.data.folders import images, png
from tests.caffe_compat.layers.harness import Lone, forward, lone

PICTURES = images(5)


def source(folder: Path, fields: str = "", transform: str = "", phase: str = "TEST") -> Lone:
    param = f'source: "list.txt" batch_size: 2 {fields}'
    text = f'type: "ImageData" image_data_param {{ {param} }} transform_param {{ {transform} }}'
    return lone(text, tops=2, folder=str(folder), phase=phase)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images below "img", and their list."""
    (tmp_path / "img").mkdir()
    for index, picture in enumerate(PICTURES):
        (tmp_path / "img" / f"n {index}.png").write_bytes(png(picture))
    (tmp_path / "list.txt").write_text("".join(f"img/n {index}.png {index}\n" for index in range(5)))
    return tmp_path


def labels(it: Lone, batches: int) -> list[int]:
    return [int(label) for _ in range(batches) for label in forward(it, [])[1]]


def test_batches_go_round(folder: Path) -> None:
    it = source(folder, "", "mean_value: 7 scale: 2")
    assert it.top_shapes == [(2, 3, 6, 5), (2,)]
    top, label = forward(it, [])
    np.testing.assert_array_equal(top, (np.stack(PICTURES[:2]) - np.float32(7)) * 2)
    np.testing.assert_array_equal(label, [0, 1])
    assert labels(it, 4) == [2, 3, 4, 0, 1, 2, 3, 4]


def test_grey_and_resized(folder: Path) -> None:
    it = source(folder, "new_height: 9 new_width: 4 is_color: false", "crop_size: 3")
    assert it.top_shapes[0] == (2, 1, 3, 3)
    grey = [cv2.imdecode(np.frombuffer(png(picture), np.uint8), cv2.IMREAD_GRAYSCALE) for picture in PICTURES[:2]]
    want = [cv2.resize(image, (4, 9))[None, 3:6, 0:3] for image in grey]
    np.testing.assert_array_equal(forward(it, [])[0], np.stack(want))


def test_the_root_folder_is_put_before_the_name(folder: Path) -> None:
    (folder / "list.txt").write_text("n 3.png 3\n")
    assert labels(source(folder, 'root_folder: "img/"'), 1) == [3, 3]
    with pytest.raises(LayerError, match=r'"imgn 3\.png" does not exist, "img/n 3\.png" does; end root_folder with'):
        source(folder, 'root_folder: "img"')


def test_every_shuffled_round_has_every_image(folder: Path) -> None:
    rounds = [labels(source(folder, "shuffle: true"), 40) for _ in range(2)]
    assert rounds[0] == rounds[1]
    orders = [rounds[0][start : start + 5] for start in range(0, 80, 5)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert len({tuple(order) for order in orders}) > 8


def test_some_are_left_out_at_the_start(folder: Path) -> None:
    first = labels(source(folder, "rand_skip: 5"), 3)
    assert first == [(first[0] + k) % 5 for k in range(6)]
    assert labels(source(folder, "rand_skip: 1"), 1) == [0, 1]
    with pytest.raises(LayerError, match=r"rand_skip leaves out .* images, and the list has no more"):
        forward(source(folder, "rand_skip: 4000000000"), [])


def test_training_crops_at_random(folder: Path) -> None:
    it = source(folder, "", "crop_size: 3", phase="TRAIN")
    tops = [forward(it, [])[0] for _ in range(15)]
    assert len({top.tobytes() for top in tops}) == 15


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("img/n 0.png\n", r"list\.txt:1:\d+: no label"),
        ("\n", "names no image"),
        ("img/none.png 1\n", r'image "img/none\.png": no such file'),
        ("list.txt 1\n", r'image "list\.txt": an image cannot be decoded'),
        ("../x.png 1\n", r'image "\.\./x\.png": .*outside the folder'),
    ],
)
def test_bad_lists(folder: Path, text: str, message: str) -> None:
    (folder / "list.txt").write_text(text)
    with pytest.raises(LayerError, match=message):
        source(folder)


def test_a_damaged_image_is_named_when_it_is_read(folder: Path) -> None:
    path = folder / "img" / "n 1.png"
    path.write_bytes(path.read_bytes()[:60])
    it = source(folder)
    with pytest.raises(LayerError, match=r'layer "it": "list\.txt": image "img/n 1\.png": an image cannot be decoded'):
        forward(it, [])


def test_a_crop_larger_than_the_images(folder: Path) -> None:
    with pytest.raises(LayerError, match="crop_size 6 is larger than an image of 6 x 5"):
        source(folder, "", "crop_size: 6")


def test_a_net_that_came_without_its_images(folder: Path) -> None:
    (folder / "list.txt").write_text("/images/a.jpg 0\n")
    it = source(folder, 'root_folder: "/home/x"', "crop_size: 4")
    assert it.top_shapes == [(2, 3, 4, 4), (2,)]
    with pytest.raises(LayerError, match=r'image "/images/a\.jpg": "/home/x/images/a\.jpg" is outside the folder'):
        forward(it, [])
    with pytest.raises(LayerError, match="outside the folder"):
        source(folder, 'root_folder: "/home/x"')


def test_a_list_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    net = tmp_path_factory.mktemp("net") / "net.prototxt"
    text = 'type: "ImageData" top: "data" top: "label" image_data_param { source: "list.txt" batch_size: 1 }'
    net.write_text(f'layer {{ name: "it" {text} transform_param {{ crop_size: 2 }} }}')
    with pytest.raises(LayerError, match=r'list\.txt" does not exist'):
        cc.load(net)()
    assert cc.load(net, data_folders=["/nonexistent", str(folder)])()["label"].tolist() == [0]
