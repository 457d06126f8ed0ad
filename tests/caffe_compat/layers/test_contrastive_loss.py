"""ContrastiveLoss against a naive reference with Caffe's own gradient."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import Array, arrays, forward, gradients, lone


def text(margin: float = 1.0, legacy: bool = False) -> str:
    flag = "true" if legacy else "false"
    return f'type: "ContrastiveLoss" contrastive_loss_param {{ margin: {margin} legacy_version: {flag} }}'


def reference(a: Array, b: Array, similar: Array, margin: float, legacy: bool) -> tuple[float, Array]:
    loss, grad = 0.0, np.zeros_like(a)
    for i in range(len(a)):
        difference = a[i] - b[i]
        squared = (difference**2).sum()
        distance = np.sqrt(squared)
        room = margin - (squared if legacy else distance)
        if int(similar[i]):
            loss, grad[i] = loss + squared, difference
        elif room > 0:
            loss += room if legacy else room**2
            grad[i] = -difference * (1 if legacy else room / (distance + 1e-4))
    return loss / len(a) / 2, grad / len(a)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("margin", [0.5, 3.0])
@pytest.mark.parametrize("tail", [(), (1, 1)])
def test_loss_and_gradients(tail: tuple[int, ...], margin: float, legacy: bool) -> None:
    a, b = arrays((6, 3), (6, 3))
    b[5] = a[5]
    similar = np.array([0.0, 1, 0, 0, 2, 0])
    shape = (6, 3, *tail)
    it = lone(text(margin, legacy), shape, shape, (6, *tail[:1]))
    bottoms = [a.reshape(shape), b.reshape(shape), similar.reshape(6, *tail[:1])]
    loss, grad = reference(a, b, similar, margin, legacy)
    np.testing.assert_allclose(forward(it, bottoms)[0], loss)
    (left, right, none), _ = gradients(it, bottoms, [np.array(1.0)])
    np.testing.assert_allclose(left, grad.reshape(shape), atol=1e-15)
    np.testing.assert_allclose(right, -grad.reshape(shape), atol=1e-15)
    assert not none.any()
    assert [it.layer.propagates(index) for index in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (2, 4), (2,)), "with one C"),
        (((2, 3, 2, 1), (2, 3, 2, 1), (2,)), "with one C"),
        (((2, 3), (2, 3), (2, 2)), "labels of shape"),
        (((2, 3), (2, 3), (1,)), "labels of shape"),
        (((2, 3), (3, 3), (2,)), "first dimension"),
    ],
)
def test_refused(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(text(), *shapes)
