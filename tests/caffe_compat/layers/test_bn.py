"""BN of two families of forks against the formulas of their sources."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_compat.errors import LayerError
from caffe_compat.schema import pb
from tests.caffe_compat.layers.harness import Array, Lone, arrays, check_gradients, forward, gradients, lone
from tests.caffe_compat.layers.refusals import refusal

SHAPES = [(4, 3), (3, 2, 5), (2, 3, 4, 5), (1, 3)]


def over(x: Array) -> tuple[int, ...]:
    return tuple(axis for axis in range(x.ndim) if axis != 1)


def wide(values: Array, x: Array) -> Array:
    return values.reshape(1, -1, *[1] * (x.ndim - 2))


def bn(shape: tuple[int, ...], text: str = "", phase: str = "TEST", dialect: str = "pspnet") -> Lone:
    return lone(f'type: "BN" bn_param {{ {text} }}', shape, phase=phase, dialect=dialect)


def batch_gradient(normal: Array, deviation: Array, grad: Array) -> Array:
    axes = over(normal)
    inner = grad - grad.mean(axes, keepdims=True) - normal * (grad * normal).mean(axes, keepdims=True)
    return np.asarray(inner / deviation)


# -- PSPNet ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_training_uses_and_notes_the_batch(shape: tuple[int, ...], eps: float) -> None:
    it = bn(shape, f"momentum: 0.6 eps: {eps}", "TRAIN")
    (x,), blobs = arrays(shape), it.blobs()
    slope, bias, mean, variance = (wide(blob, x) for blob in blobs)
    now, spread = x.mean(over(x), keepdims=True), x.var(over(x), keepdims=True)
    held = [torch.from_numpy(blob.copy()) for blob in blobs]
    top = it.layer.forward([torch.from_numpy(x)], held)[0]
    np.testing.assert_allclose(top.numpy(), slope * (x - now) / np.sqrt(spread + eps) + bias, atol=1e-12)
    for blob, old, new in ((held[2], mean, now), (held[3], variance, spread)):
        np.testing.assert_allclose(blob.numpy().ravel(), (0.6 * old + 0.4 * new).ravel(), rtol=1e-6)
    assert [blob.shape for blob in blobs] == [(1, shape[1], 1, 1)] * 4
    if np.prod(shape) > shape[1]:
        check_gradients(it, [x], blobs, learned=False)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_in_the_test_phase_is_as_in_training(shape: tuple[int, ...]) -> None:
    it = bn(shape, "eps: 0.01")
    (x, grad), blobs = arrays(shape, shape), it.blobs()
    slope, bias, mean, variance = (wide(blob, x) for blob in blobs)
    deviation = np.sqrt(variance + it.layer.eps)
    normal = (x - mean) / deviation
    np.testing.assert_allclose(forward(it, [x], blobs)[0], slope * normal + bias, atol=1e-12)
    (got,), (by_slope, by_bias, *rest) = gradients(it, [x], [grad], blobs)
    np.testing.assert_allclose(got, batch_gradient(normal, deviation, grad * slope), atol=1e-12)
    np.testing.assert_allclose(by_slope.ravel(), (grad * normal).sum(over(x)))
    np.testing.assert_allclose(by_bias.ravel(), grad.sum(over(x)))
    assert not any(part.any() for part in rest)


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_frozen_layers_use_their_statistics(phase: str) -> None:
    shape = (2, 3, 4, 5)
    it = bn(shape, "frozen: true", phase)
    (x, grad), blobs = arrays(shape, shape), it.blobs()
    slope, bias, mean, variance = (wide(blob, x) for blob in blobs)
    deviation = np.sqrt(variance + it.layer.eps)
    np.testing.assert_allclose(forward(it, [x], blobs)[0], slope * (x - mean) / deviation + bias, rtol=1e-7)
    (got,), rest = gradients(it, [x], [grad], blobs)
    np.testing.assert_allclose(got, grad * slope / deviation, rtol=1e-7)
    assert not any(part.any() for part in rest)
    assert [spec.lr_mult for spec in it.node.specs] == [0] * 4
    assert [filler.value for filler in it.layer.fillers()] == [0, 0, 0, 1]


def test_statistics_are_never_learned() -> None:
    it = lone('type: "BN" param { lr_mult: 2 } param { } param { lr_mult: 3 decay_mult: 1 }', (2, 3), dialect="pspnet")
    assert [(spec.lr_mult, spec.decay_mult) for spec in it.node.specs] == [(2, 1), (1, 1), (0, 0), (0, 0)]
    assert [filler.value for filler in it.layer.fillers()] == [0] * 4


def test_yjxiong_has_two_axes() -> None:
    assert bn((2, 3, 4, 5), dialect="yjxiong").node.blob_shapes == ((1, 3),) * 4


# -- SegNet ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 5), (2, 3, 2, 2, 3)])
def test_learning_uses_the_batch_in_both_phases(shape: tuple[int, ...], phase: str) -> None:
    it = lone('type: "BN"', shape, tops=3, phase=phase, dialect="segnet")
    (x,), blobs = arrays(shape), it.blobs()
    full = x if x.ndim > 4 else x.reshape((*shape, 1, 1)[:4])
    mean, variance = full.mean(over(full), keepdims=True), full.var(over(full), keepdims=True)
    want = [blobs[0] * (full - mean) / np.sqrt(variance + 1e-9) + blobs[1], mean, variance]
    assert it.top_shapes == [array.shape for array in want]
    for got, array in zip(forward(it, [x], blobs), want, strict=True):
        np.testing.assert_allclose(got, array, atol=1e-12)
    one = lone('type: "BN"', shape, phase=phase, dialect="segnet")
    check_gradients(one, [x], blobs)
    tops = it.layer.forward([torch.from_numpy(x).requires_grad_()], [torch.from_numpy(blob) for blob in blobs])
    assert [top.requires_grad for top in tops] == [True, False, False]


def test_inference_scales_and_shifts() -> None:
    shape = (2, 3, 4, 5)
    it = lone('type: "BN" bn_param { bn_mode: INFERENCE }', shape, dialect="segnet")
    (x,), blobs = arrays(shape), it.blobs()
    np.testing.assert_allclose(forward(it, [x], blobs)[0], x * blobs[0] + blobs[1])
    check_gradients(it, [x], blobs)


def test_inference_has_no_statistics() -> None:
    text = 'type: "BN" bn_param { bn_mode: INFERENCE }'
    what = "2 tops; with bn_mode INFERENCE there are no statistics"
    assert refusal(text, (2, 3, 4, 5), tops=2, dialect="segnet") == (what, "top[1]")


def test_fillers_are_those_of_the_fork() -> None:
    text = "scale_filler { value: 1 } shift_filler { value: 0.001 } slope_filler { value: 7 }"
    fillers = bn((2, 3, 4, 5), text, dialect="segnet").layer.fillers()
    assert fillers == [pb.FillerParameter(value=1), pb.FillerParameter(value=0.001)]


# -- both --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dialect", "most"), [("pspnet", 4), ("segnet", 5)])
def test_axes_and_channels(dialect: str, most: int) -> None:
    for shape in ((3,), (1,) * (most + 1)):
        what = f"the bottom has {len(shape)} axes; it takes 2 to {most}"
        assert refusal('type: "BN"', shape, dialect=dialect) == (what, "bottom[0]")
    it = bn((2, 3, 4, 4), dialect=dialect)
    with pytest.raises(LayerError, match="a bottom with 4 channels; the net was built for 3"):
        it.layer.top_shapes([(2, 4, 4, 4)])


def cudnn(shape: tuple[int, ...], fields: str = "", phase: str = "TEST") -> Lone:
    return lone(f'type: "CuDNNBatchNorm" cudnn_batch_norm_param {{ momentum: 0.9 {fields} }}', shape, phase=phase)


def test_statistics_of_cudnn() -> None:
    x, scale, bias, mean, variance = arrays((3, 2, 4, 5), *[(1, 2, 1, 1)] * 4)
    variance = abs(variance)
    wanted = (x - mean) / np.sqrt(variance + 1e-5) * scale + bias
    for phase, fields in (("TEST", ""), ("TRAIN", "frozen: true")):
        found = forward(cudnn(x.shape, fields, phase), [x], [scale, bias, mean, variance])
        np.testing.assert_allclose(found[0], wanted, rtol=1e-6)
    blobs = [torch.from_numpy(value.copy()) for value in (scale, bias, mean, variance)]
    cudnn(x.shape, "eps: 0", "TRAIN").layer.forward([torch.from_numpy(x)], blobs)
    axes = (0, 2, 3)
    np.testing.assert_allclose(blobs[2].ravel(), 0.9 * mean.ravel() + 0.1 * x.mean(axes))
    np.testing.assert_allclose(blobs[3].ravel(), 0.9 * variance.ravel() + 0.1 * x.var(axes, ddof=1))


def test_fillers_of_cudnn() -> None:
    it = cudnn((3, 2), "frozen: true scale_filler { value: 2 } bias_filler { value: 3 }")
    assert [filler.value for filler in it.layer.fillers()] == [2, 3, 0, 1]
    assert [spec.lr_mult for spec in it.node.specs] == [0] * 4
    assert [spec.lr_mult for spec in cudnn((3, 2)).node.specs] == [1, 1, 0, 0]
