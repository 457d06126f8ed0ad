"""Deconvolution against loops."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from caffe_compat.errors import GraphError, Problems
from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers import naive
from tests.caffe_compat.layers.harness import arrays, check_gradients, forward, lone, run_onnx, session
from tests.caffe_compat.layers.refusals import refusal
from tests.tolerances import LAYERS

CLOSE = 1e-12


def deconv(text: str) -> str:
    return f'type: "Deconvolution" convolution_param {{ {text} }}'


@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_every_geometry_equals_loops(kernel: int) -> None:
    for size, stride, pad, dilation in product((1, 3, 4), (1, 2, 3), (0, 1), (1, 2)):
        if min(size, 3) <= pad and stride * (size - 1) + dilation * (kernel - 1) + 1 <= 2 * pad:
            continue
        text = f"num_output: 3 kernel_size: {kernel} stride: {stride} pad: {pad} dilation: {dilation}"
        it = lone(deconv(text), (2, 2, size, 3))
        (x,), (weight, bias) = arrays((2, 2, size, 3)), it.blobs()
        assert weight.shape == (2, 3, kernel, kernel)
        (got,) = forward(it, [x], [weight, bias])
        assert [got.shape] == it.top_shapes, text
        np.testing.assert_allclose(got, naive.deconvolution(x, weight, bias, stride, pad, dilation), atol=CLOSE)


CASES = [
    ("num_output: 4 kernel_size: 3 stride: 2 pad: 1 group: 2", (2, 4, 3, 4), {"stride": 2, "pad": 1, "group": 2}),
    ("num_output: 2 kernel_size: 3 stride: 2 dilation: 2", (2, 3, 4), {"stride": 2, "dilation": 2}),
    ("num_output: 2 kernel_size: [2, 1, 3] pad: 0", (1, 2, 3, 2, 2), {}),
    ("num_output: 4 kernel_size: 2 stride: 2 pad: 1 group: 2", (1, 2, 3, 2, 3, 2), {"stride": 2, "pad": 1, "group": 2}),
]


@pytest.mark.parametrize(("text", "shape", "arguments"), CASES)
def test_groups_and_any_number_of_axes(text: str, shape: Shape, arguments: dict[str, int]) -> None:
    it = lone(deconv(text), shape)
    (x,), (weight, bias) = arrays(shape), it.blobs()
    (got,) = forward(it, [x], [weight, bias])
    assert [got.shape] == it.top_shapes
    np.testing.assert_allclose(got, naive.deconvolution(x, weight, bias, **arguments), atol=CLOSE)
    check_gradients(it, [x], [weight, bias])


def test_without_spatial_axes() -> None:
    it = lone(deconv("num_output: 3 bias_term: false"), (4, 2))
    (x,), (weight,) = arrays((4, 2)), it.blobs()
    np.testing.assert_allclose(forward(it, [x], [weight])[0], x @ weight, atol=CLOSE)


@pytest.mark.parametrize(("text", "shape"), [case[:2] for case in CASES[:3]])
def test_onnx_runtime_agrees(text: str, shape: Shape) -> None:
    it = lone(deconv(text), shape)
    blobs = it.blobs()
    exported = session(it, blobs)
    for items in (shape[0], 3):
        bottoms = arrays((items, *shape[1:]))
        assert LAYERS.ratio(run_onnx(exported, bottoms)[0], forward(it, bottoms, blobs, np.float32)[0]) <= 1


def test_counts_multiplications() -> None:
    it = lone(deconv("num_output: 6 kernel_size: 3 group: 2"), (2, 4, 5, 7))
    assert it.layer.macs([(2, 4, 5, 7)], it.top_shapes) == 2 * 5 * 7 * 4 * (6 // 2) * 9


def test_refuses_what_caffe_refuses() -> None:
    assert refusal(deconv("num_output: 3 kernel_size: 2 group: 2"), (1, 4, 3, 3))[1] == "convolution_param.group"
    assert refusal(deconv("kernel_size: 2"), (1, 4, 3, 3))[1] == "convolution_param.num_output"
    with pytest.raises((GraphError, Problems), match="each size must be >= 0"):
        lone(deconv("num_output: 2 kernel_size: 2 pad: 2"), (1, 2, 1, 1))
