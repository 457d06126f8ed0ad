"""SmoothL1Loss of several forks, and what else R-CNN forks measure, against naive references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import Array, arrays, check_gradients, forward, gradients, lone
from tests.caffe_compat.layers.refusals import refusal

SHAPES = [(6, 8), (2, 3, 4, 5), (4, 3, 1, 1)]
ONE = np.array(1.0)


def smooth(x: Array, sigma: float = 1.0) -> Array:
    return np.where(np.abs(x) < 1 / sigma**2, 0.5 * (sigma * x) ** 2, np.abs(x) - 0.5 / sigma**2)


def slope(x: Array, sigma: float = 1.0) -> Array:
    return np.where(np.abs(x) < 1 / sigma**2, sigma**2 * x, np.sign(x))


# -- SSD and R-CNN -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_ssd(shape: tuple[int, ...]) -> None:
    a, b = arrays(shape, shape)
    it = lone('type: "SmoothL1Loss"', shape, shape, dialect="ssd")
    np.testing.assert_allclose(forward(it, [a, b])[0], smooth(a - b).sum() / len(a))
    (left, right), _ = gradients(it, [a, b], [ONE])
    np.testing.assert_allclose(left, slope(a - b) / len(a), atol=1e-15)
    np.testing.assert_allclose(right, -left)
    assert it.node.loss_weights == (1.0,)


@pytest.mark.parametrize("sigma", [1.0, 3.0, 0.5, -2.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_rcnn(shape: tuple[int, ...], weighted: bool, sigma: float) -> None:
    a, b, inside, outside = arrays(shape, shape, shape, shape)
    bottoms = [a, b, inside, outside] if weighted else [a, b]
    w_in, w_out = (inside, outside) if weighted else (np.ones(shape), np.ones(shape))
    text = f'type: "SmoothL1Loss" smooth_l1_loss_param {{ sigma: {sigma} }}'
    it = lone(text, *[shape] * len(bottoms), dialect="fast-rcnn")
    np.testing.assert_allclose(forward(it, bottoms)[0], (w_out * smooth(w_in * (a - b), sigma)).sum() / len(a))
    (left, right, *rest), _ = gradients(it, bottoms, [ONE])
    np.testing.assert_allclose(left, w_in * w_out * slope(w_in * (a - b), sigma) / len(a), atol=1e-14)
    np.testing.assert_allclose(right, -left)
    assert not any(grad.any() for grad in rest)
    assert it.node.loss_weights == (0.0,)
    check_gradients(it, bottoms)


def test_what_rcnn_refuses() -> None:
    text = 'type: "SmoothL1Loss" smooth_l1_loss_param { sigma: %s }'
    what = "weights inside without weights outside"
    assert refusal(text % 1, *[(2, 3)] * 3, dialect="fast-rcnn") == (what, "bottom[2]")
    assert refusal(text % 0, *[(2, 3)] * 2, dialect="fast-rcnn") == ("sigma is 0", "smooth_l1_loss_param.sigma")
    for shapes in ([(2, 3), (2, 4)], [(2, 3), (2, 3), (2, 3), (2, 3, 2)]):
        what, field = refusal(text % 1, *shapes, dialect="fast-rcnn")
        assert f"has shape {shapes[-1]}, bottom 0 has (2, 3)" in what
        assert field == f"bottom[{len(shapes) - 1}]"
    assert "allows 4" in refusal(text % 1, *[(2, 1, 1, 1, 1)] * 2, dialect="fast-rcnn")[0]


# -- with the loss of each instance ------------------------------------------------------------------------

NORMALIZERS = {
    "": 2 * 20,
    "normalization: FULL": 2 * 20,
    "normalization: VALID": 2 * 20,
    "normalization: BATCH_SIZE": 2,
    "normalization: NONE": 1,
    "normalization: PRE_FIXED pre_fixed_normalizer: 128": 128,
    "normalization: PRE_FIXED pre_fixed_normalizer: 0.5": 1,
    "normalize: false": 2,
}
"""For a shape (2, C, 4, 5)."""


@pytest.mark.parametrize(("kind", "dialect"), [("SmoothL1LossOHEM", "intel"), ("SmoothL1Loss", "rfcn")])
@pytest.mark.parametrize("mode", NORMALIZERS)
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_of_each_instance(kind: str, dialect: str, mode: str, weighted: bool) -> None:
    shape = (2, 3, 4, 5)
    a, b, w = arrays(shape, shape, shape)
    bottoms = [a, b, w] if weighted else [a, b]
    x = w * (a - b) if weighted else a - b
    z = NORMALIZERS[mode]
    weights = "loss_weight: 1 loss_weight: 0"
    text = f'type: "{kind}" {weights} loss_param {{ {mode} }}'
    it = lone(text, *[shape] * len(bottoms), tops=2, dialect=dialect)
    assert it.top_shapes == [(), (2, 1, 4, 5)]
    loss, each = forward(it, bottoms)
    np.testing.assert_allclose(loss, smooth(x).sum() / z)
    np.testing.assert_allclose(each, smooth(x).sum(1, keepdims=True))
    tensors = [torch.from_numpy(bottom).requires_grad_() for bottom in bottoms]
    tops = it.layer.forward(tensors, [])
    assert not tops[1].requires_grad
    left, right = torch.autograd.grad(tops[0], tensors[:2])
    np.testing.assert_allclose(left.numpy(), slope(x) / z, atol=1e-15)  # without the factor w
    np.testing.assert_allclose(right.numpy(), -left.numpy())


def test_instances_of_flat_bottoms() -> None:
    it = lone('type: "SmoothL1LossOHEM" loss_weight: 1 loss_weight: 0', (3, 4), (3, 4), tops=2, dialect="intel")
    assert it.top_shapes == [(), (3, 1, 1, 1)]
    a, b = arrays((3, 4), (3, 4))
    np.testing.assert_allclose(forward(it, [a, b])[1].ravel(), smooth(a - b).sum(1))


@pytest.mark.parametrize(("kind", "dialect"), [("SoftmaxWithLossOHEM", "3d-faster-rcnn"), ("SoftmaxWithLoss", "rfcn")])
@pytest.mark.parametrize("ignore", [None, 1])
def test_softmax_loss_of_each_label(kind: str, dialect: str, ignore: int | None) -> None:
    (x,) = arrays((2, 3, 4, 5))
    labels = np.random.default_rng(0).integers(0, 3, (2, 1, 4, 5)).astype(float)
    stated = "" if ignore is None else f"loss_param {{ ignore_label: {ignore} }}"
    weights = "loss_weight: 1 loss_weight: 0 loss_weight: 0"
    it = lone(f'type: "{kind}" {weights} {stated}', x.shape, labels.shape, tops=3, dialect=dialect)
    assert it.top_shapes == [(), x.shape, labels.shape]
    e = np.exp(x)
    p = e / e.sum(1, keepdims=True)
    counted = np.ones(labels.shape, bool) if ignore is None else labels != ignore
    each = -np.log(np.take_along_axis(p, labels.astype(int), 1)) * counted
    loss, probabilities, losses = forward(it, [x, labels])
    np.testing.assert_allclose(losses, each, atol=1e-15)
    np.testing.assert_allclose(loss, each.sum() / counted.sum())
    np.testing.assert_allclose(probabilities, p)
    one = np.arange(3).reshape(1, 3, 1, 1) == labels
    seeds = [ONE, np.ones(x.shape), np.ones(labels.shape)]
    tensors = [torch.from_numpy(x).requires_grad_(), torch.from_numpy(labels)]
    tops = it.layer.forward(tensors, [])
    assert [top.requires_grad for top in tops] == [True, False, False]
    assert len(seeds) == len(tops)
    (grad,) = torch.autograd.grad(tops[0], tensors[:1])
    np.testing.assert_allclose(grad.numpy(), (p - one) * counted / counted.sum(), atol=1e-15)


def test_fixed_normalizer_is_of_the_ohem_layer_alone() -> None:
    fixed = "loss_param { normalization: PRE_FIXED pre_fixed_normalizer: 4 }"
    (x,), labels = arrays((2, 3)), np.array([0.0, 2.0])
    it = lone(f'type: "SoftmaxWithLossOHEM" {fixed}', (2, 3), (2,), dialect="intel")
    plain = lone('type: "SoftmaxWithLossOHEM" loss_param { normalization: NONE }', (2, 3), (2,), dialect="intel")
    np.testing.assert_allclose(forward(it, [x, labels])[0] * 4, forward(plain, [x, labels])[0])
    for kind, dialect in (("", ""), ("", "rfcn"), ("OHEM", "3d-faster-rcnn")):
        wrong = f'type: "SoftmaxWithLoss{kind}" loss_param {{ normalization: PRE_FIXED }}'
        what, field = refusal(wrong, (2, 3), (2,), dialect=dialect)
        assert "PRE_FIXED" in what
        assert field == "loss_param.normalization"


# -- L1Loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_absolute_differences(shape: tuple[int, ...]) -> None:
    a, b = arrays(shape, shape)
    it = lone('type: "L1Loss"', shape, shape, dialect="nvidia")
    np.testing.assert_allclose(forward(it, [a, b])[0], np.abs(a - b).sum() / len(a))
    check_gradients(it, [a, b])


def test_absolute_differences_need_equal_sizes() -> None:
    with pytest.raises(LayerError, match="differ in the values per item"):
        lone('type: "L1Loss"', (2, 3), (2, 4), dialect="nvidia")
