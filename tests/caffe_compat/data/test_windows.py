"""Window files, and windows cut out of images, against a plain restatement of the rule."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_compat.data.windows import Box, Warp, read_windows
from caffe_compat.errors import FormatError

TWO = "# 0\na/1.jpg\n3\n20\n30\n2\n1 0.75 0 1 2 3\n0 0.1 4 5 6 7\n# 1\n/abs/2.jpg\n3 10 10\n1\n2 1 0 0 9 9\n"
IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def write(folder: Path, text: str) -> Path:
    path = folder / "windows.txt"
    path.write_text(text)
    return path


def test_a_file(tmp_path: Path) -> None:
    found = read_windows(write(tmp_path, TWO))
    assert found.images == ("a/1.jpg", "/abs/2.jpg")
    assert found.channels == 3
    assert found.windows.tolist() == [[0, 1, 0, 1, 2, 3], [0, 0, 4, 5, 6, 7], [1, 2, 0, 0, 9, 9]]
    np.testing.assert_array_equal(found.overlaps, np.float32([0.75, 0.1, 1]))


def test_an_image_without_windows(tmp_path: Path) -> None:
    found = read_windows(write(tmp_path, "# 0 a.jpg 1 2 3 0"))
    assert (found.images, found.channels, found.windows.shape, found.overlaps.shape) == (("a.jpg",), 1, (0, 6), (0,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("# 0 a.jpg", "1:1: .*no image here"),
        ("0 a.jpg 3 4 5 0", "no image here"),
        ("# 0 a.jpg three 4 5 0", "no image here"),
        ("# 1 a.jpg 3 4 5 0", "image 1 as the 0th"),
        (TWO.replace("# 1", "# 2"), "9:1: .*image 2 as the 1th"),
        (TWO.replace("0 0.1 4 5 6 7\n", ""), "image 0 has 2 windows; 6 of 12 numbers follow"),
        (TWO.replace("4 5 6 7", "4 5 6 7 8"), "13 of 12 numbers follow"),
        (TWO.replace("0 0.1", "0 x"), "of 12 numbers follow"),
        (TWO.replace("4 5 6 7", "4 5 6 7.5"), "label or corner that is no integer"),
        (TWO.replace("0.1", "nan"), "no integer"),
        (TWO.replace("\n2\n", "\n2000000000\n", 1), "12 of 12000000000 numbers follow"),
    ],
)
def test_what_is_no_window_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_windows(write(tmp_path, text))


def test_plain_windows_are_warped_to_the_crop() -> None:
    placed = Warp(8)(IMAGE, Box(3, 4, 17, 12), mirrored=False)
    np.testing.assert_array_equal(placed.image, cv2.resize(IMAGE[4:13, 3:18], (8, 8)))
    assert (placed.top, placed.left) == (0, 0)
    mirrored = Warp(8)(IMAGE, Box(3, 4, 17, 12), mirrored=True)
    np.testing.assert_array_equal(mirrored.image, placed.image[:, ::-1])


def half_up(value: float) -> int:
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def plain(box: Box, side: int, context: int, square: bool, mirrored: bool) -> tuple[Box, int, int, int, int]:
    """Region of the image, height and width it is warped to, and top and left in the crop, in float64."""
    scale = side / (side - 2 * context)
    half_height, half_width = (box.y2 - box.y1 + 1) / 2, (box.x2 - box.x1 + 1) / 2
    centre_x, centre_y = box.x1 + half_width, box.y1 + half_height
    if square:
        half_height = half_width = max(half_height, half_width)
    x1, x2 = half_up(centre_x - half_width * scale), half_up(centre_x + half_width * scale)
    y1, y2 = half_up(centre_y - half_height * scale), half_up(centre_y + half_height * scale)
    scale_x, scale_y = side / (x2 - x1 + 1), side / (y2 - y1 + 1)
    left, right = max(0, -x1), max(0, x2 - IMAGE.shape[1] + 1)
    top, bottom = max(0, -y1), max(0, y2 - IMAGE.shape[0] + 1)
    inner = Box(x1 + left, y1 + top, x2 - right, y2 - bottom)
    width = half_up((inner.x2 - inner.x1 + 1) * scale_x)
    height = half_up((inner.y2 - inner.y1 + 1) * scale_y)
    pad_w = half_up((right if mirrored else left) * scale_x)
    pad_h = half_up(top * scale_y)
    return inner, min(height, side - pad_h), min(width, side - pad_w), pad_h, pad_w


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("context", [0, 2])
def test_context_is_cut_at_the_image_and_leaves_room(context: int, square: bool, mirrored: bool) -> None:
    warp, generator = Warp(13, context, square), np.random.default_rng(1)
    met = set()
    for _ in range(200):
        x1, y1 = int(generator.integers(25)), int(generator.integers(15))
        box = Box(x1, y1, x1 + int(generator.integers(29 - x1)), y1 + int(generator.integers(19 - y1)))
        placed = warp(IMAGE, box, mirrored)
        if not (context or square):
            assert placed.image.shape == (13, 13, 3)
            continue
        inner, height, width, top, left = plain(box, 13, context, square, mirrored)
        region = IMAGE[inner.y1 : inner.y2 + 1, inner.x1 : inner.x2 + 1]
        warped = cv2.resize(region, (width, height))
        np.testing.assert_array_equal(placed.image, warped[:, ::-1] if mirrored else warped)
        assert (placed.top, placed.left) == (top, left)
        met.add((top > 0, left > 0))
    assert len(met) == (4 if context else 3 if square else 0)


@pytest.mark.parametrize("box", [Box(0, 0, 30, 5), Box(-1, 0, 5, 5), Box(5, 5, 4, 8), Box(0, 0, 5, 20)])
def test_windows_outside_the_image(box: Box) -> None:
    with pytest.raises(ValueError, match="lies outside an image of 20 x 30"):
        Warp(8)(IMAGE, box, mirrored=False)
