"""Resizing images by SSD's rules, and their boxes with them."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_compat.data.resizing import resize_boxes, resize_image, resized_size, stretch_boxes
from caffe_compat.schema import pb

cv2 = pytest.importorskip("cv2", reason="OpenCV is an extra")
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def resize(text: str) -> pb.ResizeParameter:
    return text_format.Parse(text, pb.ResizeParameter())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("height: 12 width: 4", (12, 4)),
        ("height: 12 width: 4 resize_mode: FIT_LARGE_SIZE_AND_PAD", (12, 4)),
        ("height: 3 width: 16 resize_mode: FIT_SMALL_SIZE", (12, 16)),
        ("height: 12 width: 4 resize_mode: FIT_SMALL_SIZE", (12, 16)),
    ],
)
def test_sizes(text: str, size: tuple[int, int]) -> None:
    assert resized_size(resize(text), 6, 8) == size
    assert resize_image(PIXELS, resize(text), np.random.default_rng(0)).shape == (*size, 3)


def test_warping_is_opencv_s() -> None:
    got = resize_image(PIXELS, resize("height: 12 width: 20 interp_mode: CUBIC"), np.random.default_rng(0))
    np.testing.assert_array_equal(got, cv2.resize(PIXELS, (20, 12), interpolation=cv2.INTER_CUBIC))
    got = resize_image(PIXELS[..., :1], resize("height: 12 width: 20"), np.random.default_rng(0))
    np.testing.assert_array_equal(got[..., 0], cv2.resize(PIXELS[..., 0], (20, 12), interpolation=cv2.INTER_LINEAR))


@pytest.mark.parametrize(
    ("pad", "row"),
    [
        ("", [0, 0, 0]),
        ("pad_value: 7", [7, 7, 7]),
        ("pad_value: 1 pad_value: 2 pad_value: 3", [1, 2, 3]),
    ],
)
def test_padding(pad: str, row: list[int]) -> None:
    """6 x 8 in 9 x 8: one row above, two below."""
    got = resize_image(
        PIXELS, resize(f"height: 9 width: 8 resize_mode: FIT_LARGE_SIZE_AND_PAD {pad}"), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(got[1:7], PIXELS)
    assert got[0].tolist() == got[7].tolist() == got[8].tolist() == [row] * 8
    got = resize_image(
        PIXELS,
        resize("height: 6 width: 10 resize_mode: FIT_LARGE_SIZE_AND_PAD pad_mode: REPEAT_NEAREST"),
        np.random.default_rng(0),
    )
    np.testing.assert_array_equal(got[:, 0], PIXELS[:, 0])
    np.testing.assert_array_equal(got[:, 1:9], PIXELS)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("height: 3 width: 4", [0.25, 0.0, 1.0, 0.5]),
        ("height: 8 width: 8 resize_mode: FIT_LARGE_SIZE_AND_PAD", [0.25, 0.125, 1.0, 0.5]),
        ("height: 6 width: 16 resize_mode: FIT_LARGE_SIZE_AND_PAD", [0.375, 0.0, 0.85, 0.5]),
        ("height: 3 width: 16 resize_mode: FIT_SMALL_SIZE", [0.25, 0.0, 1.0, 0.5]),
    ],
)
def test_boxes_follow_their_image(text: str, want: list[float]) -> None:
    """A box that begins above an image of 6 x 8 and ends to the right of it; padding is not clipped at the end."""
    got = resize_boxes(np.array([[0.25, -0.5, 1.2, 0.5]], np.float32), resize(text), 6, 8)
    np.testing.assert_allclose(got, [want], rtol=1e-6)


def test_boxes_in_the_units_of_stated_scales() -> None:
    boxes, whole = np.array([[0.25, 0.5, 0.5, 1.0]], np.float32), np.array([0, 0, 1, 1], np.float32)
    param = resize("height: 6 width: 8 resize_mode: FIT_SMALL_SIZE height_scale: 3 width_scale: 4")
    np.testing.assert_allclose(stretch_boxes(boxes, param, (12, 16), whole), boxes * 2)
    np.testing.assert_array_equal(stretch_boxes(boxes, resize("height: 6 width: 8"), (12, 16), whole), boxes)
    with pytest.raises(ValueError, match="a crop of 2 x 2 is smaller"):
        stretch_boxes(boxes, param, (12, 16), np.array([0, 0, 0.25, 0.25 + 1 / 12], np.float32))
