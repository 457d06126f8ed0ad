"""BatchNorm of NVIDIA's fork."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_compat.errors import ConversionError
from caffe_compat.schema import pb
from tests.caffe_compat.layers.harness import Array, arrays, check_gradients, forward, lone, session

SCALED = 'type: "BatchNorm" batch_norm_param { scale_bias: true moving_average_fraction: 0.75 eps: 0.5 }'
PLAIN = 'type: "BatchNorm" batch_norm_param { moving_average_fraction: 0.75 eps: 0.5 }'
SHAPE = (4, 3, 2, 5)


def column(values: Array) -> Array:
    return np.reshape(values, (-1, 1, 1))


def test_inference_reads_mean_and_variance_as_they_are() -> None:
    it = lone(SCALED, SHAPE)
    assert it.node.blob_shapes == ((3,), (3,), (1,), (3,), (3,))
    (x,), (mean, variance, reserved, scale, bias) = arrays(SHAPE), it.blobs()
    want = (x - column(mean)) / np.sqrt(column(variance) + 0.5) * column(scale) + column(bias)
    np.testing.assert_allclose(forward(it, [x], [mean, variance, reserved, scale, bias])[0], want, rtol=1e-12)


def test_without_scale_there_are_three_blobs() -> None:
    it = lone(PLAIN, SHAPE, dialect="nvidia")
    (x,), (mean, variance, reserved) = arrays(SHAPE), it.blobs()
    want = (x - column(mean)) / np.sqrt(column(variance) + 0.5)
    np.testing.assert_allclose(forward(it, [x], [mean, variance, reserved])[0], want, rtol=1e-12)


@pytest.mark.parametrize("filler", ["scale_filler", "bias_filler"])
def test_a_filler_asks_for_scale_and_bias(filler: str) -> None:
    it = lone(f'type: "BatchNorm" batch_norm_param {{ {filler} {{ value: 7 }} }}', SHAPE)
    assert it.graph.context.dialect == "nvidia"  # caffe-windows, which has that field too, is not followed in it
    assert len(it.node.blob_shapes) == 5
    values = [own.value for own in it.layer.fillers()]
    assert values == ([0, 0, 1, 7, 0] if filler == "scale_filler" else [0, 0, 1, 1, 7])


def test_training_normalises_by_the_batch_and_moves_the_blobs() -> None:
    it = lone(SCALED, SHAPE, phase="TRAIN")
    blobs = [torch.tensor(blob) for blob in it.blobs()]
    scale, bias = (column(blob.numpy()) for blob in blobs[3:])
    want = [np.zeros(3), np.zeros(3)]
    for step in range(4):
        (x,) = arrays(SHAPE, seed=step)
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
        kept = 0.75 if step > 1 else 0
        want = [kept * a + (1 - kept) * b for a, b in zip(want, (mean, variance), strict=True)]
        y = it.layer.forward([torch.tensor(x)], blobs)[0].numpy()
        expected = (x - column(mean)) / np.sqrt(column(variance) + 0.5) * scale + bias
        np.testing.assert_allclose(y, expected, rtol=1e-12)
        np.testing.assert_allclose(np.stack([blob.numpy() for blob in blobs[:2]]), np.stack(want), rtol=1e-12)


def test_gradients() -> None:
    it = lone(SCALED, SHAPE)
    frozen = [torch.tensor(blob) for blob in it.blobs()]

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return it.layer.forward([tensors[0]], [*frozen[:3], *tensors[1:]])[0]

    inputs = [torch.tensor(values, requires_grad=True) for values in (arrays(SHAPE)[0], *it.blobs()[3:])]
    assert torch.autograd.gradcheck(run, inputs)
    check_gradients(lone(PLAIN, SHAPE, phase="TRAIN", dialect="nvidia"), arrays(SHAPE), it.blobs()[:3], learned=False)


def test_multipliers_are_fixed() -> None:
    it = lone(f'{SCALED} param {{ lr_mult: 5 }} param {{ name: "shared" }}', SHAPE)
    assert [(spec.lr_mult, spec.decay_mult) for spec in it.node.specs] == [(0, 0)] * 3 + [(1, 1)] * 2
    assert it.node.specs[1].name == "shared"


def test_eps_has_a_least_value() -> None:
    assert lone('type: "BatchNorm" batch_norm_param { scale_bias: true eps: 1e-9 }', SHAPE).layer.eps == 1e-5  # type: ignore[attr-defined]


def test_training_is_not_exported() -> None:
    it = lone(SCALED, SHAPE, phase="TRAIN")
    with pytest.raises(ConversionError):
        session(it, it.blobs(), 18)


def test_multipliers_of_the_message_stay() -> None:
    spec = pb.ParamSpec(lr_mult=3)
    it = lone(SCALED, SHAPE)
    it.layer.param_specs([spec], 5)
    assert spec.lr_mult == 3
