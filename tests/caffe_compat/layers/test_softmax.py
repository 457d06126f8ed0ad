from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import arrays, forward, gradients, lone

SHAPE = (2, 3, 2, 4)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_sums_over_one_axis(axis: int) -> None:
    it = lone(f'type: "Softmax" softmax_param {{ axis: {axis} }}', SHAPE)
    x, d = arrays(SHAPE, SHAPE)
    y = np.exp(x) / np.exp(x).sum(axis, keepdims=True)
    np.testing.assert_allclose(forward(it, [x])[0], y, rtol=1e-12)
    want = (d - (d * y).sum(axis, keepdims=True)) * y
    np.testing.assert_allclose(gradients(it, [x], [d])[0][0], want, rtol=1e-9, atol=1e-15)


def test_2013_sums_over_the_whole_item() -> None:
    it = lone('type: "Softmax"', SHAPE, profile="dec2013")
    (x,) = arrays(SHAPE)
    y = np.exp(x) / np.exp(x).sum((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(forward(it, [x])[0], y, rtol=1e-12)


def test_large_values_do_not_overflow() -> None:
    it = lone('type: "Softmax"', (1, 3), inplace=True)
    assert forward(it, [np.array([[1e30, 1e30, -1e30]])])[0].tolist() == [[0.5, 0.5, 0]]


def test_axis_out_of_range() -> None:
    with pytest.raises(LayerError, match="axis 1 is out of range"):
        lone('type: "Softmax"', (3,))
