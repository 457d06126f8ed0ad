"""EuclideanLoss under both profiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import arrays, check_gradients, forward, gradients, lone

TEXT = 'type: "EuclideanLoss"'


@pytest.mark.parametrize("shapes", [((3, 4), (3, 4)), ((2, 3, 2, 2), (2, 12)), ((2, 6), (2, 2, 3)), ((5,), (5,))])
def test_loss_and_gradients(shapes: tuple[tuple[int, ...], ...]) -> None:
    a, b = arrays(*shapes)
    it = lone(TEXT, *shapes)
    difference = a - b.reshape(a.shape)
    np.testing.assert_allclose(forward(it, [a, b])[0], (difference**2).sum() / len(a) / 2)
    (left, right), _ = gradients(it, [a, b], [np.array(2.0)])
    np.testing.assert_allclose(left, 2 * difference / len(a))
    np.testing.assert_allclose(right, -2 * difference.reshape(b.shape) / len(a))
    check_gradients(it, [a, b])


def test_videos_of_c3d_have_five_axes_all_alike() -> None:
    shape = (2, 3, 4, 2, 2)
    a, b = arrays(shape, shape)
    it = lone(TEXT, shape, shape, dialect="c3d-v1.0")
    np.testing.assert_allclose(forward(it, [a, b])[0], ((a - b) ** 2).sum() / 4)
    with pytest.raises(LayerError, match="values per item"):
        lone(TEXT, shape, (2, 3, 2, 4, 2), dialect="c3d-v1.0")


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (2, 4)), "values per item"),
        (((2, 3), (3, 3)), "first dimension"),
        (((1, 1, 1, 1, 2), (1, 2)), "allows 4"),
    ],
)
def test_refused(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(TEXT, *shapes)


def test_2013_has_a_gradient_for_bottom_0_only() -> None:
    it = lone(TEXT, (3, 2, 1, 2), (3, 2, 1, 2), tops=0, profile="dec2013")
    a, b = (torch.from_numpy(array).requires_grad_() for array in arrays((3, 2, 1, 2), (3, 2, 1, 2)))
    loss = it.layer.loss([a, b])
    left, right = torch.autograd.grad(loss, [a, b], allow_unused=True)
    torch.testing.assert_close(loss, (a - b).square().sum() / 6)
    torch.testing.assert_close(left, (a - b).detach() / 3)
    assert right is None


def test_2013_wants_equal_shapes() -> None:
    with pytest.raises(LayerError, match="differ"):
        lone(TEXT, (2, 4, 1, 1), (2, 2, 2, 1), tops=0, profile="dec2013")
