from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers.harness import arrays, forward, gradients, lone


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5)])
def test_each_channel_has_a_slope(shape: Shape) -> None:
    it = lone('type: "PReLU"', shape)
    (x,), slopes = arrays(shape), np.array([0.25, -1.0, 2.0])
    along = slopes.reshape((1, 3) + (1,) * (len(shape) - 2))
    np.testing.assert_allclose(forward(it, [x], [slopes])[0], np.maximum(x, 0) + along * np.minimum(x, 0), rtol=1e-12)


def test_one_slope_for_all() -> None:
    it = lone('type: "PReLU" prelu_param { channel_shared: true }', (2, 3))
    assert it.node.blob_shapes == ((),)
    assert forward(it, [np.full((2, 3), -2.0)], [np.array(0.5)])[0].tolist() == [[-1] * 3] * 2


def test_gradient_at_zero_is_the_slope() -> None:
    it = lone('type: "PReLU"', (2, 1))
    bottoms, blobs = gradients(it, [np.array([[0.0], [-3.0]])], [np.ones((2, 1))], [np.array([0.5])])
    assert bottoms[0].tolist() == [[0.5], [0.5]]
    assert blobs[0].tolist() == [-3]


def test_slopes_start_at_a_quarter_unless_filled() -> None:
    assert lone('type: "PReLU"', (2, 3)).layer.fillers()[0].value == 0.25
    filled = lone('type: "PReLU" prelu_param { filler { type: "gaussian" std: 2 } }', (2, 3)).layer.fillers()[0]
    assert (filled.type, filled.std) == ("gaussian", 2)


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3, 4, 5)])
def test_takes_two_to_four_axes(shape: Shape) -> None:
    with pytest.raises(LayerError, match="axes"):
        lone('type: "PReLU"', shape)
