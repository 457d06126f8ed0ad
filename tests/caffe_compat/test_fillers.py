"""Fillers: bounds, moments and checks."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray

from caffe_compat.errors import VggcError
from caffe_compat.fillers import fill, known, problem
from caffe_compat.layers.base import Shape
from caffe_compat.schema import pb
from tests.tolerances import FILLER_BOUND, FILLER_SIGMAS, FILLER_STD


def filler(text: str) -> pb.FillerParameter:
    return text_format.Parse(text, pb.FillerParameter())


def filled(text: str, shape: Shape, profile: str = "bvlc") -> NDArray[np.float32]:
    values = fill(filler(text), shape, np.random.default_rng(0), profile)
    assert values.shape == shape
    assert values.dtype == np.float32
    assert values.flags.writeable
    return values


def moments_are(values: NDArray[np.float32], mean: float, std: float) -> bool:
    samples = values.astype(np.float64)
    near = abs(samples.mean() - mean) <= FILLER_SIGMAS * std / sqrt(samples.size)
    return bool(near and abs(samples.std() - std) <= FILLER_STD * std)


@pytest.mark.parametrize(("text", "value"), [("", 0), ('type: "constant" value: -1.25', -1.25)])
def test_constant(text: str, value: float) -> None:
    assert (filled(text, (3, 4)) == value).all()


UNIFORM = [
    ('type: "uniform"', (40, 500), 0, 1),
    ('type: "uniform" min: -0.5 max: 2', (40, 500), -0.5, 2),
    ('type: "xavier"', (60, 30, 3, 3), -sqrt(3 / 270), sqrt(3 / 270)),
    ('type: "xavier" variance_norm: FAN_OUT', (60, 30, 3, 3), -sqrt(3 / 540), sqrt(3 / 540)),
    ('type: "xavier" variance_norm: AVERAGE', (60, 30, 3, 3), -sqrt(3 / 405), sqrt(3 / 405)),
    ('type: "xavier" variance_norm: FAN_OUT', (100, 200), -sqrt(3 / 100), sqrt(3 / 100)),
    ('type: "xavier"', (20000,), -sqrt(3), sqrt(3)),
]


@pytest.mark.parametrize(("text", "shape", "low", "high"), UNIFORM)
def test_uniform_ones_keep_their_bounds_and_moments(text: str, shape: Shape, low: float, high: float) -> None:
    values = filled(text, shape)
    slack = FILLER_BOUND * max(abs(low), abs(high))
    assert low - slack <= values.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < values.max() <= high + slack
    assert moments_are(values, (low + high) / 2, (high - low) / sqrt(12))


@pytest.mark.parametrize(
    ("text", "shape", "mean", "std"),
    [
        ('type: "gaussian"', (40, 500), 0, 1),
        ('type: "gaussian" mean: 1 std: 0.25', (40, 500), 1, 0.25),
        ('type: "msra"', (60, 30, 3, 3), 0, sqrt(2 / 270)),
        ('type: "msra" variance_norm: FAN_OUT', (60, 30, 3, 3), 0, sqrt(2 / 540)),
        ('type: "msra" variance_norm: AVERAGE', (100, 200), 0, sqrt(2 / 150)),
    ],
)
def test_normal_ones_have_their_moments(text: str, shape: Shape, mean: float, std: float) -> None:
    assert moments_are(filled(text, shape), mean, std)


def test_sparse_keeps_a_share_of_the_first_size() -> None:
    values = filled('type: "gaussian" sparse: 20', (100, 400))
    assert abs(np.count_nonzero(values) / values.size - 0.2) < 0.01
    assert moments_are(values[values != 0], 0, 1)
    assert not filled('type: "gaussian" sparse: 0', (10, 10)).any()


def test_positive_unitball_sums_to_one_in_each_slice() -> None:
    values = filled('type: "positive_unitball"', (8, 6, 5, 5))
    np.testing.assert_allclose(values.reshape(8, -1).sum(1), 1, rtol=1e-5)
    assert values.min() >= 0


def test_bilinear_interpolates() -> None:
    even = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
    odd = np.outer([1, 2, 3, 2, 1], [1, 2, 3, 2, 1]) / 9
    np.testing.assert_array_equal(filled('type: "bilinear"', (2, 1, 4, 4)), np.broadcast_to(even, (2, 1, 4, 4)))
    np.testing.assert_allclose(filled('type: "bilinear"', (1, 1, 5, 5))[0, 0], odd, rtol=1e-6)


def test_equal_seeds_give_equal_values() -> None:
    for kind in known("bvlc"):
        text = f'type: "{kind}"'
        np.testing.assert_array_equal(filled(text, (2, 2, 3, 3)), filled(text, (2, 2, 3, 3)))


@pytest.mark.parametrize(
    ("text", "shape", "what"),
    [
        ('type: "he"', (2, 2), 'unknown filler "he"'),
        ('type: "constant" sparse: 1', (2, 2), "does not support sparse"),
        ('type: "xavier" sparse: 0', (2, 2), "does not support sparse"),
        ('type: "gaussian" sparse: 3', (2, 5), "sparse from -1 to 2"),
        ('type: "gaussian" sparse: -2', (2, 5), "sparse from -1 to 2"),
        ('type: "gaussian" std: 0', (2, 2), "std > 0"),
        ('type: "gaussian" std: nan', (2, 2), "std > 0"),
        ('type: "uniform" min: 1 max: 0', (2, 2), "min <= max"),
        ('type: "uniform" max: inf', (2, 2), "min <= max"),
        ('type: "bilinear"', (1, 1, 3, 4), "square kernel"),
        ('type: "bilinear"', (3, 3), "4 axes"),
        ('type: "constant"', (0, 3), "nothing to fill"),
    ],
)
def test_refuses_what_caffe_refuses(text: str, shape: Shape, what: str) -> None:
    with pytest.raises(VggcError) as caught:
        fill(filler(text), shape, np.random.default_rng(0))
    assert what in caught.value.what


class Test2013:
    def test_blobs_have_four_axes(self) -> None:
        bound = sqrt(3 / 5000)
        values = filled('type: "xavier"', (50, 100), "dec2013")
        assert bound * 0.99 < values.max() <= bound * (1 + FILLER_BOUND)
        assert filled('type: "positive_unitball"', (5, 4), "dec2013").sum() == pytest.approx(1, rel=1e-5)

    @pytest.mark.parametrize("text", ['type: "msra"', 'type: "bilinear"', 'type: "gaussian" sparse: 1'])
    def test_does_not_know_what_came_later(self, text: str) -> None:
        assert not problem(filler(text), (1, 1, 3, 3))
        assert problem(filler(text), (1, 1, 3, 3), "dec2013")
