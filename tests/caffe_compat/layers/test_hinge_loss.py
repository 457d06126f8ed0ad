"""HingeLoss against a naive reference."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import Array, arrays, check_gradients, forward, gradients, lone


def text(norm: str) -> str:
    return f'type: "HingeLoss" hinge_loss_param {{ norm: {norm} }}'


def reference(x: Array, labels: Array, power: int) -> tuple[float, Array]:
    flat, grad, loss = x.reshape(len(x), -1), np.zeros(x.size).reshape(len(x), -1), 0.0
    for i, row in enumerate(flat):
        for j, value in enumerate(row):
            sign = -1 if j == int(labels.ravel()[i]) else 1
            margin = max(0.0, 1 + sign * value)
            loss += margin**power
            grad[i, j] = sign * (power * margin ** (power - 1) if margin > 0 else 0)
    return loss / len(x), (grad / len(x)).reshape(x.shape)


@pytest.mark.parametrize(("norm", "power"), [("L1", 1), ("L2", 2)])
@pytest.mark.parametrize(("shape", "labels"), [((4, 3), (4,)), ((2, 3, 2, 2), (2, 1, 1, 1)), ((2, 3), (2, 2))])
def test_loss_and_gradient(shape: tuple[int, ...], labels: tuple[int, ...], norm: str, power: int) -> None:
    (x,) = arrays(shape)
    values = np.arange(np.prod(labels)).reshape(labels) % 3.0
    it = lone(text(norm), shape, labels)
    loss, grad = reference(x, values, power)
    np.testing.assert_allclose(forward(it, [x, values])[0], loss)
    (got, none), _ = gradients(it, [x, values], [np.array(1.0)])
    np.testing.assert_allclose(got, grad)
    assert not none.any()
    check_gradients(it, [x, values])


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_no_gradient_where_the_margin_is_met_exactly(norm: str) -> None:
    it = lone(text(norm), (1, 2), (1,))
    (grad, _), _ = gradients(it, [np.array([[1.0, -1.0]]), np.array([0.0])], [np.array(1.0)])
    assert not grad.any()


def test_label_out_of_range() -> None:
    with pytest.raises(LayerError, match="label 3 at index 1"):
        forward(lone(text("L1"), (2, 3), (2,)), [np.zeros((2, 3)), np.array([0.0, 3.0])])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((0, 3), (0,)), "empty"),
        (((2, 3), (3,)), "first dimension"),
        (((2, 1, 1, 1, 3), (2,)), "allows 4"),
    ],
)
def test_refused(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(text("L1"), *shapes)
