"""Convolution and pooling of videos against loops."""

from __future__ import annotations

from itertools import product
from math import ceil

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from caffe_compat.layers.pooling import FLT_MAX
from tests.caffe_compat.layers.harness import Array, arrays, forward, gradients, lone, run_onnx, session
from tests.caffe_compat.layers.refusals import refusal

SHAPE = (2, 3, 5, 6, 7)
C3D = "num_output: 4 kernel_size: 3 kernel_depth: 2 stride: 2 temporal_stride: 1 pad: 1 temporal_pad: 1"


def naive(x: Array, weight: Array, bias: Array, stride: tuple[int, ...], pad: tuple[int, ...]) -> Array:
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in pad)])
    kernel = weight.shape[2:]
    sizes = [(n - k) // s + 1 for n, k, s in zip(padded.shape[2:], kernel, stride, strict=True)]
    top = np.zeros((len(x), len(weight), *sizes))
    for place in np.ndindex(*sizes):
        window = tuple(slice(p * s, p * s + k) for p, s, k in zip(place, stride, kernel, strict=True))
        axes = range(1, 2 + len(kernel))
        values = np.tensordot(padded[(slice(None), slice(None), *window)], weight, (list(axes), list(axes)))
        top[(slice(None), slice(None), *place)] = values + bias
    return top


@pytest.mark.parametrize("message", ["convolution3d_param", "convolution_param"])
def test_convolution_of_c3d(message: str) -> None:
    it = lone(f'type: "Convolution3D" {message} {{ {C3D} }}', SHAPE)
    assert it.node.blob_shapes == ((4, 3, 2, 3, 3), (1, 1, 1, 1, 4))
    (x,), (weight, bias) = arrays(SHAPE), it.blobs()
    wanted = naive(x, weight, bias.ravel(), (1, 2, 2), (1, 1, 1))
    assert it.top_shapes == [wanted.shape]
    np.testing.assert_allclose(forward(it, [x], [weight, bias])[0], wanted, rtol=1e-10)
    exported = session(it, [weight, bias])
    np.testing.assert_allclose(run_onnx(exported, [x])[0], wanted, rtol=1e-3, atol=1e-4)


def test_deconvolution_is_the_transpose() -> None:
    it = lone(f'type: "Deconvolution3D" convolution3d_param {{ {C3D} bias_term: false }}', SHAPE)
    assert it.node.blob_shapes == ((3, 4, 2, 3, 3),)
    assert it.top_shapes == [(2, 4, 4, 11, 13)]
    (x, y), (weight,) = arrays(SHAPE, (2, 4, 4, 11, 13)), it.blobs()
    top = forward(it, [x], [weight])[0]
    np.testing.assert_allclose((top * y).sum(), (x * naive(y, weight, np.zeros(3), (1, 2, 2), (1, 1, 1))).sum())


def test_convolution_with_shapes() -> None:
    fields = "kernel_shape { dim: [2, 3, 1] } stride_shape { dim: [1, 2, 3] } pad_shape { dim: [1, 0, 2] }"
    it = lone(f'type: "NdConvolution" convolution_param {{ num_output: 4 {fields} }}', SHAPE)
    assert it.node.blob_shapes == ((4, 3, 2, 3, 1), (4,))
    (x,), (weight, bias) = arrays(SHAPE), it.blobs()
    wanted = naive(x, weight, bias, (1, 2, 3), (1, 0, 2))
    np.testing.assert_allclose(forward(it, [x], [weight, bias])[0], wanted, rtol=1e-10)


def pooled(x: Array, kernel: Array, stride: Array, pad: Array, counts: list[int], mean: bool, whole: bool) -> Array:
    top = np.zeros((*x.shape[:2], *counts))
    sizes = np.array(x.shape[2:])
    for place in np.ndindex(*counts):
        start = np.array(place) * stride - pad
        end = np.minimum(start + kernel, sizes + pad)
        divisor = np.prod(kernel if whole else end - start)
        window = tuple(slice(a, b) for a, b in zip(start.clip(min=0), np.minimum(end, sizes), strict=True))
        values = x[(slice(None), slice(None), *window)].reshape(*x.shape[:2], -1)
        top[(slice(None), slice(None), *place)] = values.sum(-1) / divisor if mean else values.max(-1, initial=-FLT_MAX)
    return top


@pytest.mark.parametrize("message", ["pooling3d_param", "pooling_param"])
@pytest.mark.parametrize(
    ("fields", "kernel", "stride", "pad"),
    [
        ("kernel_size: 3 kernel_depth: 2 stride: 2 temporal_stride: 2", (2, 3, 3), (2, 2, 2), 0),
        ("kernel_size: 3 kernel_depth: 2 stride: 2 pool: AVE pad: 1", (2, 3, 3), (1, 2, 2), 1),
        ("kernel_size: 2 kernel_depth: 1 stride: 3", (1, 2, 2), (1, 3, 3), 0),
    ],
)
def test_pooling_of_c3d(message: str, fields: str, kernel: tuple[int, ...], stride: tuple[int, ...], pad: int) -> None:
    it = lone(f'type: "Pooling3D" {message} {{ {fields} }}', SHAPE)
    (x,), pads = arrays(SHAPE), (0, pad, pad)
    counts = [ceil((n + 2 * p - k) / s) + 1 for n, p, k, s in zip(SHAPE[2:], pads, kernel, stride, strict=True)]
    wanted = pooled(x, np.array(kernel), np.array(stride), np.array(pads), counts, "AVE" in fields, False)
    assert it.top_shapes == [wanted.shape]
    np.testing.assert_allclose(forward(it, [x])[0], wanted, rtol=1e-10)
    np.testing.assert_allclose(run_onnx(session(it), [x])[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["MAX", "AVE"])
def test_pooling_with_shapes(pool: str) -> None:
    fields = "kernel_shape { dim: [2, 3, 2] } stride_shape { dim: [2, 2, 3] } pad_shape { dim: [0, 1, 0] }"
    it = lone(f'type: "NdPooling" pooling_param {{ pool: {pool} {fields} }}', SHAPE)
    (x,) = arrays(SHAPE)
    counts = [3, 4, 3]
    at = [np.array(values) for values in ((2, 3, 2), (2, 2, 3), (0, 1, 0))]
    wanted = pooled(x, at[0], at[1], at[2], counts, pool == "AVE", True)
    assert it.top_shapes == [wanted.shape]
    np.testing.assert_allclose(forward(it, [x])[0], wanted, rtol=1e-10)
    np.testing.assert_allclose(run_onnx(session(it), [x])[0], wanted, rtol=1e-4, atol=1e-5)


def test_global_pooling() -> None:
    text = 'type: "NdPooling" pooling_param { pool: AVE global_pooling: true kernel_shape { dim: [1, 1, 1] } }'
    (x,) = arrays(SHAPE)
    np.testing.assert_allclose(forward(lone(text, SHAPE), [x])[0], x.mean((2, 3, 4), keepdims=True))


def test_every_maximum_has_the_gradient_in_c3d() -> None:
    it = lone('type: "Pooling3D" pooling3d_param { kernel_size: 2 kernel_depth: 2 }', (1, 1, 3, 3, 3))
    x = np.zeros((1, 1, 3, 3, 3))
    x[0, 0, 2, 2, 2] = 1
    wanted = np.zeros(x.shape)
    for corner in product(range(2), repeat=3):
        window = (0, 0, *(slice(at, at + 2) for at in corner))
        wanted[window] += x[window] == x[window].max()
    found, _ = gradients(it, [x], [np.ones((1, 1, 2, 2, 2))])
    np.testing.assert_array_equal(found[0], wanted)


@pytest.mark.parametrize(
    ("text", "what", "field"),
    [
        ('"Pooling3D" pooling3d_param { kernel_size: 2 }', "kernel_depth is 0", "pooling3d_param.kernel_depth"),
        (
            '"Pooling3D" pooling_param { kernel_size: 2 kernel_depth: 2 pad: 1 }',
            "pad, which is for means alone",
            "pooling_param.pad",
        ),
        (
            '"Pooling3D" pooling_param { kernel_size: 2 kernel_depth: 2 pool: STOCHASTIC }',
            "stochastic pooling, which the fork does not have",
            "pooling_param.pool",
        ),
        (
            '"NdPooling" pooling_param { kernel_size: 2 }',
            "kernel_shape has 0 sizes for 3 spatial axes",
            "pooling_param.kernel_shape",
        ),
        (
            '"NdConvolution" convolution_param { num_output: 1 kernel_shape { dim: [1, 1, 1] } pad_shape { dim: 1 } }',
            "pad_shape has 1 sizes for 3 spatial axes",
            "convolution_param.pad_shape",
        ),
        (
            '"NdConvolution" convolution_param { num_output: 1 kernel_shape { dim: [1, 0, 1] } }',
            "kernel_shape [1, 0, 1]",
            "convolution_param.kernel_shape",
        ),
    ],
)
def test_refused_parameters(text: str, what: str, field: str) -> None:
    assert refusal(f"type: {text}", SHAPE) == (what, field)


def test_images_are_no_videos() -> None:
    with pytest.raises(LayerError, match="five axes are needed"):
        lone(f'type: "Convolution3D" convolution3d_param {{ {C3D} }}', (2, 3, 6, 7))
    with pytest.raises(LayerError, match="a kernel of"):
        lone('type: "Pooling3D" pooling3d_param { kernel_size: 9 kernel_depth: 9 }', SHAPE)
