from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import arrays, forward, gradients, lone

SHAPE = (2, 3, 4, 5)


@pytest.mark.parametrize(("across", "axes"), [("false", (2, 3)), ("true", (1, 2, 3))])
@pytest.mark.parametrize("eps", [1e-9, 0.5])
def test_normalises_with_eps_on_the_deviation(across: str, axes: tuple[int, ...], eps: float) -> None:
    it = lone(f'type: "MVN" mvn_param {{ across_channels: {across} eps: {eps} }}', SHAPE)
    x, d = arrays(SHAPE, SHAPE)
    divisor = x.std(axes, keepdims=True) + np.float32(eps)
    y = (x - x.mean(axes, keepdims=True)) / divisor
    np.testing.assert_allclose(forward(it, [x])[0], y, rtol=1e-10, atol=1e-12)
    want = (d - d.mean(axes, keepdims=True) - y * (d * y).mean(axes, keepdims=True)) / divisor
    np.testing.assert_allclose(gradients(it, [x], [d])[0][0], want, rtol=1e-9, atol=1e-12)


def test_only_the_mean() -> None:
    it = lone('type: "MVN" mvn_param { normalize_variance: false }', SHAPE)
    x, d = arrays(SHAPE, SHAPE)
    np.testing.assert_allclose(forward(it, [x])[0], x - x.mean((2, 3), keepdims=True), rtol=1e-10, atol=1e-12)
    want = d - d.mean((2, 3), keepdims=True)
    np.testing.assert_allclose(gradients(it, [x], [d])[0][0], want, rtol=1e-10, atol=1e-12)


def test_constant_inputs_have_finite_gradients() -> None:
    it = lone('type: "MVN" mvn_param { eps: 0.5 }', SHAPE)
    (d,) = arrays(SHAPE)
    found = gradients(it, [np.full(SHAPE, 3.0)], [d])[0][0]
    np.testing.assert_allclose(found, (d - d.mean((2, 3), keepdims=True)) / 0.5, rtol=1e-10)


def test_tops_have_four_axes() -> None:
    it = lone('type: "MVN"', (2, 3))
    assert it.top_shapes == [(2, 3, 1, 1)]
    assert (forward(it, arrays((2, 3)))[0] == 0).all()
    with pytest.raises(LayerError, match="5 axes"):
        lone('type: "MVN"', (1, 1, 1, 1, 1))
