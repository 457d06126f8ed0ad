"""MultinomialLogisticLoss under both profiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import arrays, check_gradients, forward, gradients, lone

TEXT = 'type: "MultinomialLogisticLoss"'


@pytest.mark.parametrize(("shape", "labels"), [((3, 4), (3,)), ((2, 3, 2, 1), (2, 1, 1, 1))])
def test_loss_and_gradient(shape: tuple[int, ...], labels: tuple[int, ...]) -> None:
    (p,) = arrays(shape, low=0.1, high=0.9)
    values = np.array([1.0, 3.0, 0.0][: shape[0]])
    it = lone(TEXT, shape, labels)
    flat, rows = p.reshape(len(p), -1), np.arange(len(p))
    picked = flat[rows, values.astype(int)]
    np.testing.assert_allclose(forward(it, [p, values.reshape(labels)])[0], -np.log(picked).mean())
    want = np.zeros_like(flat)
    want[rows, values.astype(int)] = -1 / picked / len(p)
    (grad, none), _ = gradients(it, [p, values.reshape(labels)], [np.array(1.0)])
    np.testing.assert_allclose(grad, want.reshape(shape))
    assert not none.any()
    check_gradients(it, [p, values.reshape(labels)])


def test_zero_probabilities_are_clamped_and_keep_their_gradient() -> None:
    it = lone(TEXT, (1, 2), (1,))
    bottoms = [np.array([[1.0, 0.0]]), np.array([1.0])]
    np.testing.assert_allclose(forward(it, bottoms)[0], -np.log(1e-20))
    (grad, _), _ = gradients(it, bottoms, [np.array(1.0)])
    np.testing.assert_allclose(grad, [[0, -1e20]])


def test_label_out_of_range() -> None:
    with pytest.raises(LayerError, match="label -1 at index 0"):
        forward(lone(TEXT, (1, 2), (1,)), [np.ones((1, 2)), np.array([-1.0])])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [(((2, 3), (2, 2)), "each item has one label"), (((2, 3), (3,)), "first dimension")],
)
def test_refused(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(TEXT, *shapes)


def test_2013_is_the_same_without_a_top() -> None:
    it = lone(TEXT, (3, 4, 1, 1), (3, 1, 1, 1), tops=0, profile="dec2013")
    (p,) = arrays((3, 4, 1, 1), low=0.1, high=0.9)
    labels = np.array([0.0, 3.0, 2.0]).reshape(3, 1, 1, 1)
    want = forward(lone(TEXT, (3, 4, 1, 1), (3, 1, 1, 1)), [p, labels])[0]
    assert it.layer.loss([torch.from_numpy(p), torch.from_numpy(labels)]).item() == want


def test_2013_wants_one_label_per_item() -> None:
    with pytest.raises(LayerError, match="labels of shape"):
        lone(TEXT, (3, 4, 1, 1), (3, 2, 1, 1), tops=0, profile="dec2013")
