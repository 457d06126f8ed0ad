"""Places of crops, averages and ranks against plain definitions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from caffe_compat.errors import VggcError
from repro.protocols import (
    CROPS,
    Crop,
    average_scales,
    center,
    mean,
    multicrop,
    passes,
    ranks,
    softmax,
    stack_scales,
    tencrop,
    unit_length,
)
from repro.rescaling import DOWN, EVEN, UP, rescale, rescaled_size


def nearest(value: Fraction) -> int:
    """Halves go to the even number: what Python's own round does with exact numbers."""
    return round(value)


@pytest.mark.parametrize("width", range(224, 513))
def test_fifty_crops_of_every_size(width: int) -> None:
    """Five equally spaced places along each axis, first and last at the borders."""
    height, room = 736 - width, width - 224
    columns = [nearest(Fraction(k * room, 4)) for k in range(5)]
    rows = [nearest(Fraction(k * (height - 224), 4)) for k in range(5)]
    assert multicrop(height, width, 224) == [
        Crop(y, x, mirrored) for mirrored in (False, True) for y in rows for x in columns
    ]
    assert columns[0] == 0
    assert columns[-1] + 224 == width


@pytest.mark.parametrize(("height", "width"), [(224, 224), (256, 256), (257, 384), (301, 225)])
def test_ten_crops_and_the_centre(height: int, width: int) -> None:
    bottom, right = height - 224, width - 224
    middle = (bottom // 2, right // 2)
    five = [(0, 0), (0, right), (bottom, 0), (bottom, right), middle]
    assert tencrop(height, width, 224) == [Crop(*p, m) for m in (False, True) for p in five]
    assert center(height, width, 224) == [Crop(*middle)]


def test_counts() -> None:
    assert {name: len(make(300, 400, 224)) for name, make in CROPS.items()} == {
        "center": 1,
        "tencrop": 10,
        "multicrop": 50,
    }


@pytest.mark.parametrize(("rounding", "want"), [(EVEN, (384, 580)), (UP, (384, 581)), (DOWN, (384, 580))])
def test_halves_of_a_side(rounding: str, want: tuple[int, int]) -> None:
    """256 x 387 at Q = 384 has a side of 580.5."""
    assert rescaled_size(256, 387, 384, rounding) == want
    assert rescaled_size(387, 256, 384, rounding) == want[::-1]


def test_roundings_below_and_above_the_half() -> None:
    assert [rescaled_size(3, 10, 4, r)[1] for r in (EVEN, UP, DOWN)] == [13, 13, 13]
    assert [rescaled_size(3, 11, 4, r)[1] for r in (EVEN, UP, DOWN)] == [15, 15, 14]
    assert rescaled_size(256, 385, 384, EVEN) == (384, 578)


def test_an_image_that_would_become_too_large() -> None:
    with pytest.raises(VggcError, match="256 x 5120000"):
        rescale(np.zeros((1, 20000, 3), np.uint8), 256)


def test_what_protocols_consist_of() -> None:
    assert passes("dense") == ("dense",)
    assert passes("dense", "scores") == ("dense_scores",)
    assert passes("both") == ("dense", "multicrop")
    assert passes("both", "scores") == ("dense_scores", "multicrop")
    assert passes("tencrop") == ("tencrop",)
    with pytest.raises(VggcError, match="no protocol sparse"):
        passes("sparse")


def test_averages() -> None:
    a, b = np.float32([[1, 3]]), np.float32([[3, 4]])
    np.testing.assert_array_equal(mean([a, b]), [[2, 3.5]])
    assert mean([a]).dtype == np.float64
    np.testing.assert_allclose(softmax(np.array([[1.0, 2.0, 700.0]])).sum(), 1)
    np.testing.assert_allclose(softmax(np.array([0.0, np.log(3)])), [0.25, 0.75])
    np.testing.assert_array_equal(unit_length(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])
    np.testing.assert_allclose(average_scales([a, b]), unit_length(np.array([[2, 3.5]])))
    np.testing.assert_allclose(stack_scales([a, b]), unit_length(np.array([[1.0, 3, 3, 4]])))


def test_ranks_count_equal_posteriors_and_nan_against_the_label() -> None:
    posteriors = np.array([[0.1, 0.7, 0.2], [0.4, 0.4, 0.2], [0.2, 0.2, 0.6], [np.nan] * 3])
    assert ranks(posteriors, np.array([1, 0, 2, 0])).tolist() == [0, 1, 0, 2]
    assert ranks(posteriors, np.array([0, 2, 1, 1])).tolist() == [2, 2, 2, 2]
