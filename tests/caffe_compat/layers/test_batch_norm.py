from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_compat.errors import LayerError
from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers.harness import Array, arrays, export, forward, gradients, lone, run_onnx, session
from tests.tolerances import LAYERS

SHAPE = (4, 3, 5)
MEAN, VARIANCE = np.array([1.0, -2.0, 0.5]), np.array([0.5, 2.0, 3.0])


def naive(x: Array, mean: Array, variance: Array, eps: float = 1e-5) -> Array:
    along = (1, -1) + (1,) * (x.ndim - 2)
    return np.asarray((x - mean.reshape(along)) / np.sqrt(variance.reshape(along) + np.float32(eps)))


@pytest.mark.parametrize("factor", [1.0, 4.0, 999.98, 0.0])
def test_global_statistics_are_divided_by_their_weight(factor: float) -> None:
    it = lone('type: "BatchNorm"', SHAPE)
    (x,) = arrays(SHAPE)
    scale = 0 if factor == 0 else 1 / factor
    want = naive(x, MEAN * scale, VARIANCE * scale)
    blobs = [MEAN, VARIANCE, np.array([factor])]
    np.testing.assert_allclose(forward(it, [x], blobs)[0], want, rtol=1e-6)
    assert LAYERS.ratio(run_onnx(session(it, blobs), [x])[0], want) <= 1


def test_onnx_uses_blobs_of_weight_1_as_they_are() -> None:
    it = lone('type: "BatchNorm"', SHAPE)
    for factor, used in ((1.0, True), (2.0, False)):
        (node,) = export(it, [MEAN, VARIANCE, np.array([factor])]).graph.node
        assert (list(node.input[3:]) == ["it.mean", "it.variance"]) == used


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5), (1, 3, 1, 2)])
def test_batch_statistics_and_their_sums(shape: Shape) -> None:
    it = lone('type: "BatchNorm" batch_norm_param { moving_average_fraction: 0.75 eps: 0.25 }', shape, phase="TRAIN")
    (x,) = arrays(shape)
    axes = tuple(axis for axis in range(len(shape)) if axis != 1)
    count = x.size // 3
    blobs = [torch.tensor(MEAN), torch.tensor(VARIANCE), torch.tensor([2.0], dtype=torch.float64)]
    for turn in range(1, 3):
        y = it.layer.forward([torch.tensor(x)], blobs)[0]  # type: ignore[list-item]
        np.testing.assert_allclose(y.numpy(), naive(x, x.mean(axes), x.var(axes), 0.25), rtol=1e-7)
        shares = 0.75**turn, sum(0.75**k for k in range(turn))
        sums = (MEAN, x.mean(axes)), (VARIANCE, x.var(axes) * count / (count - 1)), (np.array([2.0]), 1)
        for blob, (start, batch) in zip(blobs, sums, strict=True):
            np.testing.assert_allclose(blob.numpy(), start * shares[0] + batch * shares[1], rtol=1e-9)


def test_a_single_value_for_each_channel() -> None:
    it = lone('type: "BatchNorm"', (1, 3), phase="TRAIN")
    blobs = [torch.zeros(3), torch.zeros(3), torch.zeros(1)]
    x = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    (y,) = it.layer.forward([x], blobs)
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert y.tolist() == [[0, 0, 0]]
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 0, 0]]
    assert [blob.tolist() for blob in blobs] == [[1, 2, 3], [0, 0, 0], [1]]


def test_use_global_stats_overrides_the_phase() -> None:
    (x,) = arrays(SHAPE)
    blobs = [MEAN, VARIANCE, np.ones(1)]
    fixed = lone('type: "BatchNorm" batch_norm_param { use_global_stats: true }', SHAPE, phase="TRAIN")
    np.testing.assert_allclose(forward(fixed, [x], blobs)[0], naive(x, MEAN, VARIANCE), rtol=1e-7)
    fresh = lone('type: "BatchNorm" batch_norm_param { use_global_stats: false }', SHAPE)
    np.testing.assert_allclose(forward(fresh, [x], blobs)[0], naive(x, x.mean((0, 2)), x.var((0, 2))), rtol=1e-7)


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_statistics_get_no_gradient(phase: str) -> None:
    x, d = arrays(SHAPE, SHAPE)
    found = gradients(lone('type: "BatchNorm"', SHAPE, phase=phase), [x], [d], [MEAN, VARIANCE, np.ones(1)])[1]
    assert all((blob == 0).all() for blob in found)


def test_statistics_are_not_learned() -> None:
    node = lone('type: "BatchNorm"', SHAPE).node
    assert [spec.lr_mult for spec in node.specs] == [0, 0, 0]
    stated = lone('type: "BatchNorm" param { name: "m" lr_mult: 0 }', SHAPE).node
    assert [(spec.name, spec.lr_mult) for spec in stated.specs] == [("m", 0), ("", 0), ("", 0)]


@pytest.mark.parametrize("param", ["param { lr_mult: 0.5 }", "param { lr_mult: 0 } param { decay_mult: 0 }"])
def test_learning_rates_are_refused(param: str) -> None:
    with pytest.raises(LayerError, match="lr_mult"):
        lone(f'type: "BatchNorm" {param}', SHAPE)


def test_needs_a_channel_axis_and_the_same_channels() -> None:
    with pytest.raises(LayerError, match="channels are axis 1"):
        lone('type: "BatchNorm"', (7,))
    it = lone('type: "BatchNorm"', SHAPE)
    with pytest.raises(LayerError, match="2 channels"):
        it.layer.top_shapes([(4, 2, 5)])
