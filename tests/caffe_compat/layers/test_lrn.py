"""LRN against loops, across channels and within."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers import naive
from tests.caffe_compat.layers.harness import arrays, check_gradients, forward, lone, run_onnx, session
from tests.caffe_compat.layers.refusals import refusal
from tests.tolerances import LAYERS

SHAPE = (2, 6, 4, 5)


def lrn(text: str) -> str:
    return f'type: "LRN" lrn_param {{ {text} }}'


@pytest.mark.parametrize("size", [1, 3, 5, 7, 13])
@pytest.mark.parametrize(("alpha", "beta", "k"), [(1.0, 0.75, 1.0), (0.5, 0.5, 2.0), (1e-4, 1.0, 0.5)])
def test_across_channels_equals_loops_also_in_onnx(size: int, alpha: float, beta: float, k: float) -> None:
    it = lone(lrn(f"local_size: {size} alpha: {alpha} beta: {beta} k: {k}"), SHAPE)
    (x,) = arrays(SHAPE)
    want = naive.lrn_across(x, size, alpha, beta, k)
    np.testing.assert_allclose(forward(it, [x])[0], want, rtol=1e-6)
    assert LAYERS.ratio(run_onnx(session(it), [x])[0], want) <= 1
    check_gradients(it, [x])


@pytest.mark.parametrize("size", [1, 3, 5, 9])
@pytest.mark.parametrize("shape", [SHAPE, (1, 2, 1, 7)])
def test_within_a_channel_equals_loops_also_in_onnx(size: int, shape: Shape) -> None:
    it = lone(lrn(f"norm_region: WITHIN_CHANNEL local_size: {size} alpha: 0.5 beta: 0.75 k: 9"), shape)
    (x,) = arrays(shape)
    want = naive.lrn_within(x, size, 0.5, 0.75)
    np.testing.assert_allclose(forward(it, [x])[0], want, rtol=1e-6)
    assert LAYERS.ratio(run_onnx(session(it), [x])[0], want) <= 1
    check_gradients(it, [x])


def test_a_window_far_beyond_the_channels_costs_no_memory() -> None:
    it = lone(lrn("local_size: 2147483647 alpha: 2147483647"), SHAPE)
    (x,) = arrays(SHAPE)
    want = x * (1 + np.square(x).sum(1, keepdims=True)) ** -0.75
    np.testing.assert_allclose(forward(it, [x])[0], want, rtol=1e-6)


def test_in_place_across_channels_it_loses_its_bottom() -> None:
    it = lone(lrn("local_size: 3"), SHAPE, inplace=True)
    (x,) = arrays(SHAPE)
    want = (naive.lrn_across(x, 3, 1, 0.75, 1) / x) ** 2
    np.testing.assert_allclose(forward(it, [x])[0], want, rtol=1e-6)
    assert LAYERS.ratio(run_onnx(session(it), [x])[0], want) <= 1


def test_in_place_within_a_channel_it_is_right() -> None:
    it = lone(lrn("norm_region: WITHIN_CHANNEL local_size: 3"), SHAPE, inplace=True)
    (x,) = arrays(SHAPE)
    np.testing.assert_allclose(forward(it, [x])[0], naive.lrn_within(x, 3, 1, 0.75), rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "shape", "what", "field"),
    [
        ("local_size: 4", SHAPE, "local_size 4 is even", "lrn_param.local_size"),
        ("local_size: 0", SHAPE, "local_size 0 is even", "lrn_param.local_size"),
        ("", (2, 3), "takes four axes", "bottom"),
    ],
)
def test_refuses_what_caffe_refuses(text: str, shape: Shape, what: str, field: str) -> None:
    said, place = refusal(lrn(text), shape)
    assert what in said
    assert place == field


class Test2013:
    @pytest.mark.parametrize("size", [1, 2, 4, 5, 9])
    def test_even_sizes_reach_further_up(self, size: int) -> None:
        it = lone(lrn(f"local_size: {size} alpha: 0.5"), SHAPE, profile="dec2013")
        (x,) = arrays(SHAPE)
        want = naive.lrn_across(x, size, 0.5, 0.75, 1)
        np.testing.assert_allclose(forward(it, [x])[0], want, rtol=1e-6)
        assert LAYERS.ratio(run_onnx(session(it), [x])[0], want) <= 1
        check_gradients(it, [x])

    @pytest.mark.parametrize(
        ("text", "what", "field"),
        [
            ("k: 2", "no k under", "k"),
            ("norm_region: WITHIN_CHANNEL", "no norm_region", "norm_region"),
            ("local_size: 0", "local_size is 0", "local_size"),
        ],
    )
    def test_refuses(self, text: str, what: str, field: str) -> None:
        said, place = refusal(lrn(text), SHAPE, profile="dec2013")
        assert what in said
        assert place == f"lrn_param.{field}"
