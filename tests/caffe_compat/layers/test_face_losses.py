"""CenterLoss and TripletLoss against naive references."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import arrays, check_gradients, forward, gradients, lone
from tests.caffe_compat.layers.refusals import refusal

LABELS = np.array([2.0, 0, 2, 2, 1, 0])


@pytest.mark.parametrize("tail", [(4,), (2, 2, 1), (2, 2)])
def test_centers(tail: tuple[int, ...]) -> None:
    text = 'type: "CenterLoss" center_loss_param { num_output: 5 center_filler { type: "xavier" } }'
    it = lone(text, (6, *tail), (6,), dialect="caffe-face")
    (x,), (centers,) = arrays((6, 4)), it.blobs()
    assert it.node.blob_shapes == ((5, 4),)
    assert [filler.type for filler in it.layer.fillers()] == ["xavier"]
    assert it.node.loss_weights == (0.0,)
    distance = x - centers[LABELS.astype(int)]
    bottoms = [x.reshape(6, *tail), LABELS]
    np.testing.assert_allclose(forward(it, bottoms, [centers])[0], (distance**2).sum() / 12)
    want = np.zeros(centers.shape)
    for j in range(5):
        mine = np.equal(LABELS, j)
        want[j] = -distance[mine].sum(0) / (mine.sum() + 1)
    (grad, none), (by_centers,) = gradients(it, bottoms, [np.array(0.25)], [centers])
    np.testing.assert_allclose(grad.reshape(6, 4), 0.25 * distance / 6)
    np.testing.assert_allclose(by_centers, want)  # whatever the top's gradient
    assert not none.any()


@pytest.mark.parametrize(
    ("text", "shapes", "message", "field"),
    [
        ('distance_type: "L1"', ((6, 4), (6,)), "distance_type L1", "center_loss_param.distance_type"),
        ("axis: 2", ((6, 4, 3), (6,)), "axis 2: features of 3 values for items of 12", "center_loss_param.axis"),
        ("axis: 3", ((6, 4), (6,)), "axis 3 is out of range", "center_loss_param.axis"),
        ("", ((6, 4), (6, 2)), "labels of shape (6, 2)", "bottom[1]"),
        ("", ((6, 4), (5,)), "differ in the first dimension", "bottom[1]"),
    ],
)
def test_what_center_loss_refuses(text: str, shapes: tuple[tuple[int, ...], ...], message: str, field: str) -> None:
    text = f'type: "CenterLoss" center_loss_param {{ num_output: 3 {text} }}'
    what, where = refusal(text, *shapes, dialect="caffe-face")
    assert message in what
    assert where == field


def test_labels_are_classes() -> None:
    it = lone('type: "CenterLoss" center_loss_param { num_output: 2 }', (6, 4), (6,), dialect="caffe-face")
    with pytest.raises(LayerError, match="label 2 at index 0 is not one of the 2 classes"):
        forward(it, [arrays((6, 4))[0], LABELS], it.blobs())


@pytest.mark.parametrize("tail", [(), (1, 1)])
@pytest.mark.parametrize("margin", [0.5, 4.0])
def test_triplets(margin: float, tail: tuple[int, ...]) -> None:
    shape = (6, 3, *tail)
    text = f'type: "TripletLoss" triplet_loss_param {{ margin: {margin} }}'
    it = lone(text, shape, shape, shape, dialect="caffe-windows")
    a, p, n = (array.reshape(6, 3) for array in arrays(shape, shape, shape))
    losses = np.maximum(margin + ((a - p) ** 2).sum(1) - ((a - n) ** 2).sum(1), 0)
    assert 0 < (losses > 0).sum() < 6
    bottoms = [array.reshape(shape) for array in (a, p, n)]
    np.testing.assert_allclose(forward(it, bottoms)[0], losses.sum() / 12)
    active = (losses > 0)[:, None]
    grads, _ = gradients(it, bottoms, [np.array(1.0)])
    for grad, want in zip(grads, (n - p, p - a, a - n), strict=True):
        np.testing.assert_allclose(grad.reshape(6, 3), active * want / 6, atol=1e-15)
    check_gradients(it, bottoms)
    assert all(it.layer.propagates(index) for index in range(3))


def test_triplets_of_single_values() -> None:
    it = lone('type: "TripletLoss"', *[(4,)] * 3, dialect="caffe-windows")
    a, p, n = arrays(*[(4,)] * 3)
    np.testing.assert_allclose(forward(it, [a, p, n])[0], np.maximum(1 + (a - p) ** 2 - (a - n) ** 2, 0).sum() / 8)


def test_triplets_that_hardly_count_have_no_gradient() -> None:
    it = lone('type: "TripletLoss" triplet_loss_param { margin: 1 }', *[(1, 1)] * 3, dialect="caffe-windows")
    bottoms = [np.zeros((1, 1)), np.zeros((1, 1)), np.array([[1 - 2e-10]])]
    assert 0 < forward(it, bottoms)[0] < 1e-9
    assert not any(grad.any() for grad in gradients(it, bottoms, [np.array(1.0)])[0])


@pytest.mark.parametrize("shapes", [((2, 3), (2, 3), (2, 4)), ((2, 3, 2), (2, 3, 2), (2, 3, 2))])
def test_triplets_of_one_size(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(LayerError, match="of one size"):
        lone('type: "TripletLoss"', *shapes, dialect="caffe-windows")
