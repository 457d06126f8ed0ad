"""SoftmaxWithLoss against a naive reference, under both profiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_compat.errors import GraphError, LayerError
from tests.caffe_compat.layers.harness import Array, arrays, forward, gradients, lone

FLT_MIN = 2.0**-126
MODES = ("", "normalization: FULL", "normalization: VALID", "normalization: BATCH_SIZE", "normalization: NONE")
SHAPES = [  # data, labels, axis
    ((4, 3), (4,), 1),
    ((2, 3, 4, 5), (2, 4, 5), 1),
    ((4, 4), (4,), 0),
    ((2, 3, 5), (2, 3), 2),
    ((2, 3, 5), (2, 3, 1), -1),
    ((1, 2, 1, 1), (1, 1, 1), 1),
]


def text(fields: str = "", axis: int = 1, weights: str = "") -> str:
    return f'type: "SoftmaxWithLoss" softmax_param {{ axis: {axis} }} loss_param {{ {fields} }} {weights}'


def reference(x: Array, labels: Array, axis: int, mode: str, ignore: int | None) -> tuple[float, Array]:
    """Loss and gradient, one position at a time."""
    axis %= x.ndim
    outer, classes = int(np.prod(x.shape[:axis])), x.shape[axis]
    flat, flat_labels = x.reshape(outer, classes, -1), labels.reshape(outer, -1)
    loss, counted, grad = 0.0, 0, np.zeros_like(flat)
    for i in range(outer):
        for j in range(flat.shape[2]):
            label = int(flat_labels[i, j])
            if label == ignore:
                continue
            e = np.exp(flat[i, :, j] - flat[i, :, j].max())
            p = e / e.sum()
            loss -= np.log(max(p[label], FLT_MIN))
            grad[i, :, j] = p
            grad[i, label, j] -= 1
            counted += 1
    whole = outer * flat.shape[2]
    valid = counted if ignore is not None else whole
    sizes = {"FULL": whole, "VALID": valid, "BATCH_SIZE": outer, "NONE": 1, "": valid}
    z = max(1, sizes[mode.split(": ")[-1]])
    return loss / z, (grad / z).reshape(x.shape)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ignore", [None, 1])
@pytest.mark.parametrize(("shape", "labels_shape", "axis"), SHAPES)
def test_loss_and_gradient(
    shape: tuple[int, ...], labels_shape: tuple[int, ...], axis: int, mode: str, ignore: int | None
) -> None:
    (x,) = arrays(shape)
    labels = np.random.default_rng(1).integers(0, shape[axis], labels_shape).astype(float)
    stated = mode if ignore is None else f"{mode} ignore_label: {ignore}"
    it = lone(text(stated, axis), shape, labels_shape)
    loss, grad = reference(x, labels, axis, mode, ignore)
    assert it.top_shapes == [()]
    np.testing.assert_allclose(forward(it, [x, labels])[0], loss, rtol=1e-12)
    (got, none), _ = gradients(it, [x, labels], [np.array(1.0)])
    np.testing.assert_allclose(got, grad, atol=1e-12)
    assert not none.any()


@pytest.mark.parametrize(("fields", "z"), [("normalize: true", 8), ("normalize: false", 2), ("", 8)])
def test_old_normalize_field(fields: str, z: int) -> None:
    x, labels = np.zeros((2, 3, 4)), np.zeros((2, 4))
    np.testing.assert_allclose(forward(lone(text(fields), (2, 3, 4), (2, 4)), [x, labels])[0], 8 * np.log(3) / z)


def test_normalization_counts_before_normalize() -> None:
    it = lone(text("normalize: false normalization: NONE"), (2, 3), (2,))
    np.testing.assert_allclose(forward(it, [np.zeros((2, 3)), np.zeros(2)])[0], 2 * np.log(3))


def test_nothing_counts() -> None:
    it = lone(text("ignore_label: 2"), (2, 3), (2,))
    (x,) = arrays((2, 3))
    assert forward(it, [x, np.full(2, 2.0)])[0] == 0
    (grad, _), _ = gradients(it, [x, np.full(2, 2.0)], [np.array(1.0)])
    assert not grad.any()


@pytest.mark.parametrize("x", [[1000.0, 0.0], [np.inf, 0.0], [0.0, -np.inf], [-200.0, 0.0]])
def test_clamped_losses_keep_their_gradient(x: list[float]) -> None:
    it = lone(text(), (1, 2), (1,))
    bottoms = [np.array([x]), np.array([1.0])]
    if np.isposinf(x).any():
        assert np.isnan(forward(it, bottoms)[0])  # inf - inf, as in Caffe
        return
    p = np.exp(np.array(x) - max(x))
    p /= p.sum()
    np.testing.assert_allclose(forward(it, bottoms)[0], -np.log(max(p[1], FLT_MIN)))
    (grad, _), _ = gradients(it, bottoms, [np.array(1.0)])
    np.testing.assert_allclose(grad, [[p[0], p[1] - 1]])


def test_labels_are_truncated_towards_zero() -> None:
    it = lone(text(), (2, 3), (2,))
    (x,) = arrays((2, 3))
    whole, broken = forward(it, [x, np.array([1.0, 0.0])]), forward(it, [x, np.array([1.9, -0.9])])
    assert whole == broken


@pytest.mark.parametrize(("value", "index"), [(3, 0), (-1, 5), (7, 4)])
def test_label_out_of_range(value: int, index: int) -> None:
    it = lone(text("ignore_label: 255"), (2, 3, 3), (2, 3))
    labels = np.array([0.0, 1, 2, 255, 2, 0])
    labels[index] = value
    with pytest.raises(LayerError, match=rf"label {value} at index {index} is not one of the 3 classes 0 to 2"):
        forward(it, [arrays((2, 3, 3))[0], labels.reshape(2, 3)])


@pytest.mark.parametrize(
    ("fields", "shapes", "message"),
    [
        ("", ((4, 3), (3,)), "differ in the first dimension"),
        ("", ((), ()), "differ in the first dimension"),
        ("", ((2, 3, 2, 2), (2,)), "2 labels for 8 predictions"),
        ("softmax_param { axis: 2 }", ((2, 3), (2,)), "axis 2 is out of range"),
        ("loss_weight: 1 loss_weight: 0", ((2, 3), (2,)), "loss_weight"),
    ],
)
def test_refused(fields: str, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        lone(f'type: "SoftmaxWithLoss" {fields}', *shapes)


@pytest.mark.parametrize("weights", ["", "loss_weight: 1", "loss_weight: 1 loss_weight: 0"])
def test_two_tops_are_refused(weights: str) -> None:
    """Caffe's Softmax layer inside has the same loss weights, and one top."""
    with pytest.raises(LayerError, match="2 tops"):
        lone(f'type: "SoftmaxWithLoss" {weights}', (2, 3), (2,), tops=2)


def test_the_top_may_be_left_out() -> None:
    it = lone('type: "SoftmaxWithLoss"', (2, 3), (2,), tops=0)
    assert it.top_shapes == [()]
    assert it.node.loss_weights == (1.0,)


def test_other_batch_size_at_run_time() -> None:
    it = lone(text("normalization: BATCH_SIZE"), (2, 3), (2,))
    np.testing.assert_allclose(forward(it, [np.zeros((5, 3)), np.zeros(5)])[0], np.log(3))


def test_2013_takes_all_values_of_an_item_as_classes() -> None:
    it = lone('type: "SoftmaxWithLoss"', (2, 3, 2, 2), (2, 1, 1, 1), tops=0, profile="dec2013")
    (x,) = arrays((2, 3, 2, 2))
    labels = np.array([11.0, 4.0]).reshape(2, 1, 1, 1)
    loss, grad = reference(x.reshape(2, 12), labels.ravel(), 1, "NONE", None)
    assert it.top_shapes == []
    assert forward(it, [x, labels]) == []
    bottom = torch.from_numpy(x).requires_grad_()
    value = it.layer.loss([bottom, torch.from_numpy(labels)])
    np.testing.assert_allclose(value.item(), loss / 2)
    np.testing.assert_allclose(torch.autograd.grad(value, bottom)[0].numpy().reshape(2, 12), grad / 2, atol=1e-12)


@pytest.mark.parametrize("fields", ["loss_param { ignore_label: 1 }", "loss_param { normalization: FULL }"])
def test_2013_has_no_options(fields: str) -> None:
    with pytest.raises(LayerError, match=r"has no .* under profile dec2013"):
        lone(f'type: "SoftmaxWithLoss" {fields}', (2, 3, 1, 1), (2, 1, 1, 1), tops=0, profile="dec2013")


def test_2013_has_no_top() -> None:
    with pytest.raises(LayerError, match="takes 0 top"):
        lone('type: "SoftmaxWithLoss"', (2, 3, 1, 1), (2, 1, 1, 1), profile="dec2013")
