"""caffe.io: what the recorded numbers (tests/parity) do not show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from caffe_compat.data.caffe_io import Transformer, oversample, resize_image
from caffe_compat.errors import GraphError

GENERATOR = np.random.default_rng(0)
IMAGE = GENERATOR.uniform(0, 1, (6, 8, 3)).astype(np.float32)


def io(*shape: int) -> Transformer:
    return Transformer({"data": (1, *(shape or (3, 6, 8)))})


def test_the_order_of_the_steps() -> None:
    it = io()
    it.set_transpose("data", (2, 0, 1))
    it.set_channel_swap("data", (2, 1, 0))
    it.set_raw_scale("data", 255)
    it.set_mean("data", np.array([1.0, 2, 3]))
    it.set_input_scale("data", 0.5)
    want = (IMAGE.transpose(2, 0, 1)[::-1] * 255 - np.array([1, 2, 3]).reshape(3, 1, 1)) * 0.5
    made = it.preprocess("data", IMAGE)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, want, rtol=1e-6)
    np.testing.assert_allclose(it.deprocess("data", made), IMAGE, atol=1e-6)


def test_a_mean_image_takes_the_inputs_size() -> None:
    it = io(3, 4, 4)
    mean = GENERATOR.uniform(50, 60, (3, 8, 8))
    it.set_mean("data", mean)
    assert it.mean["data"].shape == (3, 4, 4)
    assert 49 < it.mean["data"].min() < it.mean["data"].max() < 61
    it.set_mean("data", np.full((3, 8, 8), 7.0))
    np.testing.assert_array_equal(it.mean["data"], np.full((3, 4, 4), 7.0))
    it.set_mean("data", mean[:, :4, :4])
    np.testing.assert_array_equal(it.mean["data"], mean[:, :4, :4])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda it: it.preprocess("x", IMAGE), 'no input called "x"; inputs: data'),
        (lambda it: it.set_raw_scale("x", 1), 'no input called "x"'),
        (lambda it: it.set_transpose("data", (1, 0)), "2 axes for an input with 3"),
        (lambda it: it.set_channel_swap("data", (1, 0)), "2 channels for an input with 3"),
        (lambda it: it.set_mean("data", np.ones(2)), "2 mean values for an input with 3"),
        (lambda it: it.set_mean("data", np.ones((1, 1, 1, 1))), "a mean of shape"),
        (lambda _: resize_image(IMAGE, (2, 2), 3), "interp_order 3; use 1"),
    ],
)
def test_refused(call: Callable[[Transformer], object], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        call(io())


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_resizing(channels: int) -> None:
    image = IMAGE[:, :, :channels]
    np.testing.assert_allclose(resize_image(image, (6, 8)), image, atol=1e-6)
    np.testing.assert_array_equal(resize_image(np.full((3, 3, 1), 4.0), (5, 2)), np.full((5, 2, 1), 4, np.float32))
    assert resize_image(image, (1, 1)).shape == (1, 1, channels)


def test_ten_crops() -> None:
    crops = oversample([IMAGE, IMAGE + 1], (4, 5))
    assert crops.shape == (20, 4, 5, 3)
    np.testing.assert_array_equal(crops[3], IMAGE[2:, 3:])
    np.testing.assert_array_equal(crops[4], IMAGE[1:5, 1:6])
    np.testing.assert_array_equal(crops[5:10], crops[:5, :, ::-1])
    np.testing.assert_array_equal(crops[10:], crops[:10] + 1)
