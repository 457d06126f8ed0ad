from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import arrays, forward, gradients, lone

SHAPE = (2, 3)


def test_sum_with_coefficients() -> None:
    it = lone('type: "Eltwise" eltwise_param { coeff: 2 coeff: 0 coeff: -1 }', SHAPE, SHAPE, SHAPE)
    a, b, c = arrays(SHAPE, SHAPE, SHAPE)
    np.testing.assert_allclose(forward(it, [a, b, c])[0], 2 * a - c, rtol=1e-12)
    found = gradients(it, [a, b, c], [a])[0]
    for gradient, coeff in zip(found, (2, 0, -1), strict=True):
        assert np.array_equal(gradient, coeff * a)


@pytest.mark.parametrize("stable", ["true", "false"])
def test_product(stable: str) -> None:
    text = f'type: "Eltwise" eltwise_param {{ operation: PROD stable_prod_grad: {stable} }}'
    it = lone(text, SHAPE, SHAPE, SHAPE)
    a, b, c = arrays(SHAPE, SHAPE, SHAPE)
    np.testing.assert_allclose(forward(it, [a, b, c])[0], a * b * c, rtol=1e-12)
    found = gradients(it, [a, b, c], [np.ones(SHAPE)])[0]
    for gradient, want in zip(found, (b * c, a * c, a * b), strict=True):
        np.testing.assert_allclose(gradient, want, rtol=1e-12)


def test_unstable_product_divides_by_the_operand() -> None:
    it = lone('type: "Eltwise" eltwise_param { operation: PROD stable_prod_grad: false }', (3,), (3,))
    found = gradients(it, [np.array([0.0, 2, 3]), np.array([4.0, 0, 5])], [np.array([1.0, 1, 0])])[0]
    np.testing.assert_array_equal(found, [[np.nan, 0, 0], [0, np.nan, 0]])


def test_maximum_gives_the_gradient_to_one_bottom() -> None:
    it = lone('type: "Eltwise" eltwise_param { operation: MAX }', (4,), (4,), (4,))
    bottoms = [np.array(v, float) for v in ([1, 5, 2, 0], [1, 2, 5, 0], [1, 2, 5, 3])]
    assert forward(it, bottoms)[0].tolist() == [1, 5, 5, 3]
    found = gradients(it, bottoms, [np.array([1.0, 2, 3, 4])])[0]
    assert [gradient.tolist() for gradient in found] == [[0, 2, 0, 0], [1, 0, 3, 0], [0, 0, 0, 4]]


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("coeff: 1", "1 coeff value"),
        ("operation: PROD coeff: 1 coeff: 1", "only for SUM"),
    ],
)
def test_coefficients_that_do_not_fit(param: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(f'type: "Eltwise" eltwise_param {{ {param} }}', SHAPE, SHAPE)


def test_shapes_must_be_equal_also_at_run_time() -> None:
    with pytest.raises(LayerError, match="must be equal"):
        lone('type: "Eltwise"', SHAPE, (1, 3))
    with pytest.raises(LayerError, match="takes at least 2"):
        lone('type: "Eltwise"', SHAPE)
    with pytest.raises(LayerError, match="must be equal"):
        forward(lone('type: "Eltwise"', SHAPE, SHAPE), arrays((4, 3), (1, 3)))


@pytest.mark.parametrize("operation", ["SUM", "MAX"])
def test_in_place_only_where_caffe_gives_the_right_values(operation: str) -> None:
    text = 'type: "Eltwise" eltwise_param { operation: %s }'
    assert lone(text % "PROD", SHAPE, SHAPE, inplace=True).graph.outputs == ("in0",)
    with pytest.raises(LayerError, match="in place"):
        lone(text % operation, SHAPE, SHAPE, inplace=True)
