"""Im2col against loops."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers import naive
from tests.caffe_compat.layers.harness import arrays, check_gradients, forward, lone, run_onnx, session
from tests.caffe_compat.layers.refusals import refusal

CASES = [
    ("kernel_size: 3", (2, 3, 5, 4), {}),
    ("kernel_size: 3 stride: 2 pad: 2 dilation: 2", (2, 2, 5, 6), {"stride": 2, "pad": 2, "dilation": 2}),
    ("kernel_size: 2 stride: 3 force_nd_im2col: true", (1, 2, 5, 6), {"stride": 3}),
    ("kernel_size: 4 stride: 3", (2, 2, 3, 6), {"stride": 3}),
    ("kernel_size: 3 pad: 1", (2, 2, 5), {"pad": 1}),
    ("kernel_size: 2 stride: 2", (1, 2, 3, 4, 3), {"stride": 2}),
]


def im2col(text: str) -> str:
    return f'type: "Im2col" convolution_param {{ {text} }}'


@pytest.mark.parametrize(("text", "shape", "arguments"), CASES)
def test_equals_loops_also_in_onnx(text: str, shape: Shape, arguments: dict[str, int]) -> None:
    it = lone(im2col(text), shape)
    (x,) = arrays(shape)
    kernel = (int(text.split()[1]),) * (len(shape) - 2)
    want = naive.im2col(x, kernel, **arguments)
    want = want.reshape(shape[0], -1, *want.shape[3:])
    assert it.top_shapes == [want.shape]
    np.testing.assert_array_equal(forward(it, [x])[0], want)
    np.testing.assert_array_equal(run_onnx(session(it), [x])[0], want.astype(np.float32))
    check_gradients(it, [x])


@pytest.mark.parametrize(("axis", "items"), [(0, ()), (2, (3, 2))])
def test_axes_before_the_channels_are_items(axis: int, items: Shape) -> None:
    it = lone(im2col(f"kernel_size: 2 axis: {axis}"), (*items, 2, 3, 4))
    (x,) = arrays((*items, 2, 3, 4))
    want = naive.im2col(x.reshape(-1, 2, 3, 4), (2, 2)).reshape(*items, 8, 2, 3)
    np.testing.assert_array_equal(forward(it, [x])[0], want)
    np.testing.assert_array_equal(run_onnx(session(it), [x])[0], want.astype(np.float32))


def test_refuses_what_caffe_refuses() -> None:
    assert refusal(im2col("kernel_size: 2"), (2, 3))[1] == "convolution_param.axis"
    assert refusal(im2col("stride: 2"), (2, 3, 4, 4))[1] == "convolution_param.kernel_size"


def test_of_december_2013() -> None:
    it = lone(im2col("kernel_size: 3 stride: 2"), (2, 2, 6, 5), profile="dec2013")
    (x,) = arrays((2, 2, 6, 5))
    want = naive.im2col(x, (3, 3), 2).reshape(2, 18, 2, 2)
    np.testing.assert_array_equal(forward(it, [x])[0], want)
    assert "no axis under" in refusal(im2col("kernel_size: 3 axis: 2"), (2, 2, 6, 5), profile="dec2013")[0]
