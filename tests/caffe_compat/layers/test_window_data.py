"""WindowData: windows of images, drawn at random."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_compat.errors import LayerError
from caffe_compat.schema import pb
from tests.caffe_compat.data.folders import images, png
from tests.caffe_compat.layers.harness import Lone, forward, lone

PICTURES = images(2, 3, 20, 30)
OBJECTS = [(0, 3, 2, 2, 11, 9), (1, 5, 0, 0, 29, 19), (1, 4, 10, 5, 20, 15)]
BACKGROUND = [(0, 1, 20, 10, 29, 19), (1, 2, 4, 4, 9, 9)]
"""Image, label, corners."""


def text() -> str:
    lines = []
    for image in range(2):
        windows = [(w, "0.8") for w in OBJECTS if w[0] == image] + [(w, "0.1") for w in BACKGROUND if w[0] == image]
        lines += [f"# {image}", f"{image}.png", "3", "20", "30", str(len(windows))]
        lines += [f"{w[1]} {overlap} {' '.join(map(str, w[2:]))}" for w, overlap in windows]
    return "\n".join(lines) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, picture in enumerate(PICTURES):
        (tmp_path / f"{index}.png").write_bytes(png(picture))
    (tmp_path / "w.txt").write_text(text())
    return tmp_path


def windows(folder: Path, fields: str = "", transform: str = "crop_size: 8", phase: str = "TRAIN") -> Lone:
    param = f'source: "w.txt" batch_size: 8 {fields}'
    body = f'type: "WindowData" window_data_param {{ {param} }} transform_param {{ {transform} }}'
    return lone(body, tops=2, folder=str(folder), phase=phase)


def warped(window: tuple[int, ...], mirrored: bool = False) -> np.ndarray:
    image, _, x1, y1, x2, y2 = window
    part = cv2.resize(PICTURES[image].transpose(1, 2, 0)[y1 : y2 + 1, x1 : x2 + 1], (8, 8))
    return (part[:, ::-1] if mirrored else part).transpose(2, 0, 1)


def test_a_batch_is_background_first_then_objects(folder: Path) -> None:
    it = windows(folder, "fg_fraction: 0.4")
    assert it.top_shapes == [(8, 3, 8, 8), (8,)]
    met = set()
    for _ in range(20):
        tops, labels = forward(it, [])
        assert (labels[:5] == 0).all()
        for position, (top, label) in enumerate(zip(tops, labels, strict=True)):
            among = [w for w in (BACKGROUND if position < 5 else OBJECTS) if (top == warped(w)).all()]
            assert len(among) == 1
            assert label == (0 if position < 5 else among[0][1])
            met.add(among[0])
    assert met == {*OBJECTS, *BACKGROUND}


def test_mirrored_and_scaled(folder: Path) -> None:
    it = windows(folder, "fg_fraction: 1 scale: 0.5", "crop_size: 8 mirror: true mean_value: 9 scale: 77")
    kinds = set()
    for _ in range(10):
        for top in forward(it, [])[0]:
            for window in OBJECTS:
                for mirrored in (False, True):
                    if (top == (warped(window, mirrored) - np.float32(9)) * np.float32(0.5)).all():
                        kinds.add((window, mirrored))
    assert len(kinds) == 6


def test_what_is_outside_the_image_is_zero_and_the_mean_lies_behind_it(folder: Path) -> None:
    mean = np.random.default_rng(0).uniform(1, 2, (3, 12, 12)).astype(np.float32)
    blob = pb.BlobProto(num=1, channels=3, height=12, width=12, data=mean.ravel())
    (folder / "mean").write_bytes(blob.SerializeToString())
    (folder / "w.txt").write_text("# 0 0.png 3 20 30 2 1 1 0 0 15 15 0 0 5 5 9 9\n")
    it = windows(folder, "fg_fraction: 1 context_pad: 2", 'crop_size: 8 mean_file: "mean"')
    top = forward(it, [])[0][0]
    assert (top[:, :2] == 0).all()
    assert (top[:, :, :2] == 0).all()
    region = PICTURES[0].transpose(1, 2, 0)[:20, :25]  # 16 pixels and 8 around them, cut at the image
    part = cv2.resize(region, (6, 5)).transpose(2, 0, 1)
    np.testing.assert_array_equal(top[:, 2:7, 2:], part - mean[:, 4:9, 4:10])
    assert (top[:, 7:] == 0).all()


@pytest.mark.parametrize("cached", ["", "cache_images: true"])
def test_the_same_windows_are_drawn_again(folder: Path, cached: str) -> None:
    one, two = (windows(folder, cached) for _ in range(2))
    for _ in range(3):
        np.testing.assert_array_equal(forward(one, [])[0], forward(two, [])[0])


@pytest.mark.parametrize(
    ("fields", "transform", "message"),
    [
        ("context_pad: 4", "crop_size: 8", "context_pad 4 leaves nothing of crop_size 8"),
        ("fg_threshold: 0.05", "crop_size: 8", ""),
        ("", "crop_size: 0", "crop_size is 0"),
        ("", "crop_size: 8 mean_value: 1 mean_value: 2", "2 mean_value entries for 3"),
    ],
)
def test_refused(folder: Path, fields: str, transform: str, message: str) -> None:
    if message:
        with pytest.raises(LayerError, match=message):
            windows(folder, fields, transform)
        return
    with pytest.raises(LayerError, match="has no windows of background"):
        forward(windows(folder, fields, transform), [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("# 0", "0"), r"w\.txt:1:1: this is no window file"),
        (("3 0.8", "0 0.8"), "a window of an object has label 0"),
        (("0.8", "0.3"), "has no windows of objects"),
        (("0.png", "none.png"), r'image "none\.png": no such file'),
        (("0.png", "../0.png"), r'image "\.\./0\.png": .*outside the folder'),
        (("2 2 11 9", "2 2 11 99"), r'image "0\.png": the window \(2, 2, 11, 99\) lies outside an image of 20 x 30'),
        (("\n3\n20", "\n1\n20"), r"has 3 channels, the window file says 1"),
    ],
)
def test_bad_window_files(folder: Path, change: tuple[str, str], message: str) -> None:
    (folder / "w.txt").write_text(text().replace(*change))
    with pytest.raises(LayerError, match=message):
        run(folder, "fg_fraction: 1")


def run(folder: Path, fields: str) -> None:
    it = windows(folder, fields)
    for _ in range(20):
        forward(it, [])


def test_a_mean_that_does_not_cover_the_crop(folder: Path) -> None:
    blob = pb.BlobProto(num=1, channels=3, height=7, width=12, data=[0] * 252)
    (folder / "mean").write_bytes(blob.SerializeToString())
    with pytest.raises(LayerError, match=r"the mean image \(3, 7, 12\) does not cover a crop of \(3, 8, 8\)"):
        windows(folder, "", 'crop_size: 8 mean_file: "mean"')
