"""transform_param against loops over pixels, for both profiles."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_compat.data.transform import Floats, Part, Transform, Transform2013
from caffe_compat.errors import GraphError
from caffe_compat.schema import pb

SIZE = (3, 7, 9)
GENERATOR = np.random.default_rng(0)
IMAGE = GENERATOR.integers(0, 256, SIZE, dtype=np.uint8)
MEAN = GENERATOR.uniform(0, 255, SIZE).astype(np.float32)
DRAWS = [1, 2**32 - 1, 12345]


def param(text: str) -> pb.TransformationParameter:
    return text_format.Parse(text, pb.TransformationParameter())


def naive(image: np.ndarray, how: pb.TransformationParameter, mean: Floats | None, part: Part, side: int) -> Floats:
    """Pixel by pixel, each step in float32."""
    height, width = (side, side) if side else image.shape[1:]
    result = np.zeros((image.shape[0], height, width), np.float32)
    for c in range(image.shape[0]):
        for h in range(height):
            for w in range(width):
                value = np.float32(image[c, h + part.top, w + part.left])
                if mean is not None:
                    value = value - mean[c, h + part.top, w + part.left]
                elif how.mean_value:
                    value = value - np.float32(how.mean_value[c if len(how.mean_value) > 1 else 0])
                result[c, h, width - 1 - w if part.mirrored else w] = value * np.float32(how.scale)
    return result


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("crop", [0, 5, 7])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("means", ["", "mean_value: 99.5", "mean_value: 1 mean_value: 2.5 mean_value: -3", "file"])
def test_like_loops_over_pixels(mirror: bool, crop: int, train: bool, means: str) -> None:
    how = param(f"scale: 0.017 mirror: {str(mirror).lower()} crop_size: {crop} {means if means != 'file' else ''}")
    mean = MEAN if means == "file" else None
    transform = Transform(how, train, mean)
    draws = transform.draws(iter(DRAWS).__next__)
    room = (7 - crop, 9 - crop) if crop else (0, 0)
    offsets = [draw % (spare + 1) for draw, spare in zip(draws[-2:], room, strict=True)] if train and crop else None
    part = Part(*(offsets or [spare // 2 for spare in room]), mirrored=mirror and draws[0] % 2 == 1)
    assert transform.part(SIZE, draws) == part
    result = transform(IMAGE, draws)
    assert result.dtype == np.float32
    assert result.shape == transform.shape(SIZE)
    np.testing.assert_array_equal(result, naive(IMAGE, how, mean, part, crop))


def test_floats_and_strides_make_no_difference() -> None:
    transform = Transform(param("scale: 2 crop_size: 4"), False)
    same = np.ascontiguousarray(IMAGE.transpose(1, 2, 0)).transpose(2, 0, 1)
    np.testing.assert_array_equal(transform(IMAGE.astype(np.float32)), transform(same))


def test_numbers_are_drawn_as_caffe_draws_them() -> None:
    def count(text: str, train: bool, kind: type[Transform] = Transform) -> int:
        return len(kind(param(text), train).draws(lambda: 0))

    assert [count("mirror: true crop_size: 2", train) for train in (True, False)] == [3, 1]
    assert [count("crop_size: 2", train) for train in (True, False)] == [2, 0]
    assert count("mirror: true", True) == 1
    assert count("", True) == 0
    assert count("mirror: true crop_size: 2", True, Transform2013) == 3


def test_2013_draws_offsets_first_and_never_uses_the_last() -> None:
    transform = Transform2013(param("crop_size: 5 mirror: true"), True)
    parts = [transform.part(SIZE, [top, left, top]) for top in range(4) for left in range(8)]
    assert {part.top for part in parts} == {0, 1}
    assert {part.left for part in parts} == {0, 1, 2, 3}
    assert all(part.mirrored == (top % 2 == 1) for part, top in zip(parts, np.repeat(range(4), 8), strict=True))
    assert {Transform(param("crop_size: 5"), True).part(SIZE, [n, n]).top for n in range(9)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("text", "mean", "message"),
    [
        ("crop_size: 8", None, "crop_size 8 is larger than an image of 7 x 9; crop less"),
        ("", MEAN[:, :6], r"the mean image has shape \(3, 6, 9\), an image \(3, 7, 9\)"),
        ("crop_size: 3", MEAN[:1], "the mean image has shape"),
        ("mean_value: 1 mean_value: 2", None, r"2 mean_value entries for images of 3 channel\(s\)"),
    ],
)
def test_refused(text: str, mean: Floats | None, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Transform(param(text), False, mean)(IMAGE)


def test_2013_refuses_a_crop_of_the_whole_image() -> None:
    assert Transform(param("crop_size: 7"), False).shape(SIZE) == (3, 7, 7)
    with pytest.raises(GraphError, match="crop_size 7 is not smaller than an image of 7 x 9"):
        Transform2013(param("crop_size: 7"), False).shape(SIZE)
