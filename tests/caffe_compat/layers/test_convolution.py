"""Convolution against loops, over geometries and numbers of axes."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from caffe_compat.errors import ConversionError, GraphError, Problems
from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers import naive
from tests.caffe_compat.layers.harness import (
    arrays,
    check_gradients,
    forward,
    gradients,
    has_dynamic_batch,
    lone,
    run_onnx,
    session,
)
from tests.caffe_compat.layers.refusals import refusal
from tests.tolerances import LAYERS

CLOSE = 1e-12


def conv(text: str) -> str:
    return f'type: "Convolution" convolution_param {{ {text} }}'


GRID = [
    (size, kernel, stride, pad, dilation)
    for size, kernel, stride, pad, dilation in product((1, 4, 5, 8), (1, 2, 3), (1, 2, 3), (0, 1, 3), (1, 2))
    if naive.conv_size(size, kernel, stride, pad, dilation) > 0
]


@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_every_geometry_equals_loops(kernel: int) -> None:
    for size, _, stride, pad, dilation in [case for case in GRID if case[1] == kernel]:
        text = f"num_output: 2 kernel_size: {kernel} stride: {stride} pad: {pad} dilation: {dilation}"
        it = lone(conv(text), (1, 2, size, 5))
        (x,), (weight, bias) = arrays((1, 2, size, 5)), it.blobs()
        want = naive.convolution(x, weight, bias, stride, pad, dilation)
        (got,) = forward(it, [x], [weight, bias])
        assert [got.shape] == it.top_shapes == [want.shape], text
        np.testing.assert_allclose(got, want, atol=CLOSE)


@pytest.mark.parametrize(
    ("text", "shape", "arguments"),
    [
        ("num_output: 4 kernel_size: 3 group: 2", (2, 4, 5, 6), {"group": 2}),
        ("num_output: 6 kernel_size: 3 group: 3 pad: 1", (2, 3, 5, 6), {"group": 3, "pad": 1}),
        ("num_output: 3 kernel_size: 2 stride: 2", (2, 2, 7), {"stride": 2}),
        ("num_output: 3 kernel_size: [2, 1, 3] pad: 1", (1, 2, 3, 2, 4), {"pad": 1}),
        ("num_output: 2 kernel_size: 2 stride: 2 pad: 1", (1, 2, 3, 4, 2, 3), {"stride": 2, "pad": 1}),
        ("num_output: 2 kernel_size: 2 dilation: 2 group: 2", (2, 4, 4, 3, 3, 5), {"dilation": 2, "group": 2}),
        ("num_output: 2 kernel_size: 2 force_nd_im2col: true", (1, 2, 3, 4), {}),
    ],
)
def test_groups_and_any_number_of_axes(text: str, shape: Shape, arguments: dict[str, int]) -> None:
    it = lone(conv(text), shape)
    (x,), (weight, bias) = arrays(shape), it.blobs()
    (got,) = forward(it, [x], [weight, bias])
    want = naive.convolution(x, weight, bias, **arguments)
    assert [got.shape] == it.top_shapes
    np.testing.assert_allclose(got, want, atol=CLOSE)
    check_gradients(it, [x], [weight, bias])


@pytest.mark.parametrize("pair", ["kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 1 pad_h: 0 pad_w: 1"])
def test_height_and_width_equal_repeated_sizes(pair: str) -> None:
    one = lone(conv(f"num_output: 2 {pair}"), (2, 3, 6, 5))
    other = lone(conv("num_output: 2 kernel_size: [3, 2] stride: [2, 1] pad: [0, 1]"), (2, 3, 6, 5))
    assert one.top_shapes == other.top_shapes == [(2, 2, 2, 6)]
    (x,) = arrays((2, 3, 6, 5))
    np.testing.assert_array_equal(forward(one, [x], one.blobs()), forward(other, [x], other.blobs()))


@pytest.mark.parametrize(("axis", "items"), [(0, ()), (2, (2, 3)), (-3, (2, 3))])
def test_axes_before_the_channels_are_items(axis: int, items: Shape) -> None:
    it = lone(conv(f"num_output: 4 kernel_size: 2 axis: {axis}"), (*items, 3, 4, 5))
    (x,), (weight, bias) = arrays((*items, 3, 4, 5)), it.blobs()
    (got,) = forward(it, [x], [weight, bias])
    want = naive.convolution(x.reshape(-1, 3, 4, 5), weight, bias)
    assert it.top_shapes == [(*items, 4, 3, 4)]
    np.testing.assert_allclose(got, want.reshape(*items, 4, 3, 4), atol=CLOSE)
    check_gradients(it, [x], [weight, bias])


def test_without_spatial_axes_it_is_an_inner_product_of_groups() -> None:
    it = lone(conv("num_output: 4 group: 2"), (3, 6))
    (x,), (weight, bias) = arrays((3, 6)), it.blobs()
    assert [blob.shape for blob in (weight, bias)] == [(4, 3), (4,)]
    (got,) = forward(it, [x], [weight, bias])
    want = np.concatenate([x[:, :3] @ weight[:2].T, x[:, 3:] @ weight[2:].T], 1) + bias
    np.testing.assert_allclose(got, want, atol=CLOSE)


def test_bottoms_share_the_weights() -> None:
    it = lone(conv("num_output: 2 kernel_size: 3 bias_term: false"), (1, 2, 4, 4), (1, 2, 4, 4), tops=2)
    bottoms, (weight,) = arrays((1, 2, 4, 4), (1, 2, 4, 4)), it.blobs()
    tops = forward(it, bottoms, [weight])
    for top, x in zip(tops, bottoms, strict=True):
        np.testing.assert_allclose(top, naive.convolution(x, weight, np.zeros(2)), atol=CLOSE)
    ones = [np.ones(top.shape) for top in tops]
    first, second, both = (
        gradients(it, [a, b], ones, [weight])[1][0]
        for a, b in ((bottoms[0], 0 * bottoms[1]), (0 * bottoms[0], bottoms[1]), bottoms)
    )
    np.testing.assert_allclose(both, first + second, atol=CLOSE)


def test_kernel_less_than_a_stride_too_large_reads_zeros_behind_the_end() -> None:
    it = lone(conv("num_output: 2 kernel_size: 5 stride: 3"), (1, 2, 3, 4))
    (x,), (weight, bias) = arrays((1, 2, 3, 4)), it.blobs()
    assert it.top_shapes == [(1, 2, 1, 1)]
    want = naive.convolution(x, weight, bias, 3)
    np.testing.assert_allclose(forward(it, [x], [weight, bias])[0], want, atol=CLOSE)
    np.testing.assert_allclose(run_onnx(session(it, [weight, bias]), [x])[0], want, rtol=1e-5)


def test_counts_multiplications() -> None:
    it = lone(conv("num_output: 6 kernel_size: 3 pad: 1 group: 2"), (2, 4, 5, 7))
    assert it.layer.macs([(2, 4, 5, 7)], it.top_shapes) == 2 * 5 * 7 * 6 * (4 // 2) * 9


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("num_output: 2 kernel_size: 3 stride: 2 pad: 1", (2, 3, 5, 6)),
        ("num_output: 4 kernel_size: 2 group: 2 dilation: 2 bias_term: false", (2, 4, 5, 6)),
        ("num_output: 2 kernel_size: 3", (2, 2, 5)),
        ("num_output: 2 kernel_size: 2 pad: 1", (1, 2, 3, 2, 3)),
        ("num_output: 3", (2, 4)),
        ("num_output: 3 kernel_size: 2 axis: 0", (2, 4, 4)),
        ("num_output: 3 kernel_size: 2 axis: 2", (2, 2, 3, 4, 4)),
    ],
)
def test_onnx_runtime_agrees(text: str, shape: Shape) -> None:
    it = lone(conv(text), shape)
    blobs = it.blobs()
    exported = session(it, blobs)
    for shift in (0, 2) if has_dynamic_batch(exported) else (0,):
        bottoms = arrays((shape[0] + shift, *shape[1:]))
        (want,), (got,) = forward(it, bottoms, blobs, np.float32), run_onnx(exported, bottoms)
        assert got.shape == want.shape
        assert LAYERS.ratio(got, want) <= 1


def test_onnx_refuses_four_spatial_axes() -> None:
    it = lone(conv("num_output: 2 kernel_size: 1"), (1, 2, 2, 2, 2, 2))
    with pytest.raises(ConversionError, match="4 spatial axes"):
        session(it, it.blobs())


@pytest.mark.parametrize(
    ("text", "shape", "what", "field"),
    [
        ("num_output: 2", (1, 2, 5, 5), "kernel_size is given 0", "kernel_size"),
        ("num_output: 2 kernel_size: [1, 1, 1]", (1, 2, 5, 5), "3 time", "kernel_size"),
        ("num_output: 2 kernel_size: 0", (1, 2, 5, 5), "must be positive", "kernel_size"),
        ("num_output: 2 kernel_h: 3", (1, 2, 5, 5), "3 x 0 must be positive", "kernel_size"),
        ("num_output: 2 kernel_h: 3 kernel_w: 3 kernel_size: 3", (1, 2, 5, 5), "both", "kernel_h"),
        ("num_output: 2 kernel_h: 3 kernel_w: 3", (1, 2, 5), "2 spatial axes", "kernel_h"),
        ("num_output: 2 kernel_size: 3 stride: 0", (1, 2, 5, 5), "must be positive", "stride"),
        ("num_output: 2 kernel_size: 3 stride: 1 stride_w: 2", (1, 2, 5, 5), "both", "stride_w"),
        ("num_output: 2 kernel_size: 3 pad: 1 pad_h: 2", (1, 2, 5, 5), "both", "pad_h"),
        ("num_output: 2 kernel_size: 3 pad: [1, 1, 1]", (1, 2, 5, 5), "3 time", "pad"),
        ("num_output: 2 kernel_size: 3 dilation: 0", (1, 2, 5, 5), "must be positive", "dilation"),
        ("kernel_size: 3", (1, 2, 5, 5), "num_output is 0", "num_output"),
        ("num_output: 2 kernel_size: 3 group: 0", (1, 2, 5, 5), "group is 0", "group"),
        ("num_output: 2 kernel_size: 3 group: 2", (1, 3, 5, 5), "3 channels", "group"),
        ("num_output: 3 kernel_size: 3 group: 2", (1, 2, 5, 5), "num_output 3", "group"),
        ("num_output: 2 kernel_size: 3 axis: 4", (1, 2, 5, 5), "out of range", "axis"),
        ("num_output: 2 kernel_size: 3 weight_filler { type: 'x' }", (1, 2, 5, 5), "unknown filler", "weight_filler"),
        ("num_output: 2 kernel_size: 3", (1, 0, 5, 5), "nothing to fill", "weight_filler"),
    ],
)
def test_refuses_what_caffe_refuses(text: str, shape: Shape, what: str, field: str) -> None:
    said, place = refusal(conv(text), shape)
    assert what in said
    assert place == f"convolution_param.{field}"


def test_refuses_bottoms_that_differ_and_a_wrong_number_of_tops() -> None:
    said, place = refusal(conv("num_output: 2 kernel_size: 1"), (1, 2, 5, 5), (1, 2, 5, 4), tops=2)
    assert ("bottom 1 has shape" in said, place) == (True, "bottom[1]")
    said, place = refusal(conv("num_output: 2 kernel_size: 1"), (1, 2, 5, 5), tops=2)
    assert ("2 top(s) for 1 bottom(s)" in said, place) == (True, "top")


def test_refuses_a_kernel_larger_than_its_bottom() -> None:
    with pytest.raises((GraphError, Problems), match="each size must be >= 0"):
        lone(conv("num_output: 2 kernel_size: 5"), (1, 2, 3, 3))


class Test2013:
    """conv of December 2013: `pad` has no effect, and blobs have four axes."""

    def test_ignores_pad(self) -> None:
        it = lone(conv("num_output: 4 kernel_size: 3 stride: 2 pad: 1 group: 2"), (2, 2, 6, 7), profile="dec2013")
        (x,), (weight, bias) = arrays((2, 2, 6, 7)), it.blobs()
        assert [blob.shape for blob in (weight, bias)] == [(4, 1, 3, 3), (1, 1, 1, 4)]
        assert it.top_shapes == [(2, 4, 2, 3)]
        want = naive.convolution(x, weight, bias, 2, group=2)
        np.testing.assert_allclose(forward(it, [x], [weight, bias])[0], want, atol=CLOSE)
        check_gradients(it, [x], [weight, bias])
        assert LAYERS.ratio(run_onnx(session(it, [weight, bias]), [x])[0], want) <= 1

    @pytest.mark.parametrize(
        ("text", "what", "field"),
        [
            ("num_output: 2 kernel_size: 3 dilation: 2", "no dilation under profile dec2013", "dilation"),
            ("num_output: 2 kernel_h: 3 kernel_w: 3", "no kernel_h", "kernel_h"),
            ("num_output: 2 kernel_size: 6", "kernel 6 is larger than the bottom", "kernel_size"),
            ("num_output: 2 kernel_size: 0", "kernel_size is 0", "kernel_size"),
            ("num_output: 2 kernel_size: 3 group: 2", "does not divide the bottom's 3 channels", "group"),
            ("num_output: 2 kernel_size: 3 weight_filler { type: 'msra' }", "unknown filler", "weight_filler"),
        ],
    )
    def test_refuses(self, text: str, what: str, field: str) -> None:
        said, place = refusal(conv(text), (1, 3, 5, 5), profile="dec2013")
        assert what in said
        assert place == f"convolution_param.{field}"
