"""Pooling against loops: windows, masks, ties, divisors, empty windows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch

from caffe_compat.errors import ConversionError
from caffe_compat.layers.base import Context, Shape, find_layer
from caffe_compat.layers.pooling import Pooling, Window, max_pool
from tests.caffe_compat.layers import naive
from tests.caffe_compat.layers.harness import (
    Array,
    Lone,
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

FLT_MIN = float(np.finfo(np.float32).tiny)


def pool(text: str) -> str:
    return f'type: "Pooling" pooling_param {{ {text} }}'


def geometries(kernel: int) -> Iterator[tuple[str, Shape, tuple[int, int, int, bool]]]:
    """Fields, bottom and (kernel, stride, pad, round up) of every geometry that Caffe builds with values in its top."""
    for size, stride, pad, up in product((1, 2, 3, 5, 6, 9), (1, 2, 3, 4), range(kernel), (True, False)):
        outs = [naive.pool_size(n, kernel, stride, pad, pad > 0, up) for n in (size, 7)]
        if min(outs) > 0:
            mode = "CEIL" if up else "FLOOR"
            text = f"kernel_size: {kernel} stride: {stride} pad: {pad} round_mode: {mode}"
            yield text, (1, 2, size, 7), (kernel, stride, pad, up)


def distinct(shape: Shape) -> Array:
    """Values without ties."""
    return np.random.default_rng(0).permutation(int(np.prod(shape))).reshape(shape) - 20.5


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_maxima_masks_and_gradients_equal_loops(kernel: int) -> None:
    for text, shape, window in geometries(kernel):
        x = distinct(shape)
        want, mask = naive.max_pool(x, *window)
        one, two = lone(pool(text), shape), lone(pool(text), shape, tops=2)
        assert one.top_shapes == [want.shape], text
        np.testing.assert_array_equal(forward(one, [x]), [want], text)
        np.testing.assert_array_equal(forward(two, [x]), [want, mask], text)
        top_diff = np.random.default_rng(1).normal(size=want.shape)
        (grad,), _ = gradients(one, [x], [top_diff])
        np.testing.assert_allclose(grad, naive.max_pool_gradient(x, mask, top_diff), atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_means_equal_loops(kernel: int) -> None:
    for text, shape, window in geometries(kernel):
        x = distinct(shape)
        want = naive.ave_pool(x, *window)
        it = lone(pool(f"pool: AVE {text}"), shape)
        assert it.top_shapes == [want.shape], text
        np.testing.assert_allclose(forward(it, [x])[0], want, rtol=1e-12, err_msg=text)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_onnx_runtime_agrees_on_every_geometry(kernel: int) -> None:
    for text, shape, window in geometries(kernel):
        x = distinct(shape)
        (maxima,) = run_onnx(session(lone(pool(text), shape)), [x])
        np.testing.assert_array_equal(maxima, naive.max_pool(x, *window)[0].astype(np.float32), text)
        want = naive.ave_pool(x, *window)
        (means,) = run_onnx(session(lone(pool(f"pool: AVE {text}"), shape)), [x])
        assert LAYERS.ratio(means, want) <= 1, text


def test_height_and_width_may_differ() -> None:
    text = "kernel_h: 3 kernel_w: 2 stride_h: 1 stride_w: 2 pad_h: 1 pad_w: 0"
    it = lone(pool(text), (2, 3, 5, 5))
    (x,) = arrays((2, 3, 5, 5))
    assert it.top_shapes == [(2, 3, 5, 3)]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 1)), constant_values=-np.inf)
    want = np.lib.stride_tricks.sliding_window_view(padded, (3, 2), (2, 3))[:, :, :, ::2].max((-1, -2))
    np.testing.assert_array_equal(forward(it, [x])[0], want)


def test_kernel_size_wins_over_a_lone_kernel_h() -> None:
    it = lone(pool("kernel_size: 2 kernel_h: 3"), (1, 1, 4, 4))
    assert it.top_shapes == [(1, 1, 3, 3)]


@pytest.mark.parametrize("shape", [(2, 2, 4, 6), (1, 3, 2, 5)])
def test_of_tied_maxima_the_first_gets_the_gradient(shape: Shape) -> None:
    x = np.random.default_rng(0).integers(0, 2, shape).astype(float)
    it = lone(pool("kernel_size: 3 stride: 2"), shape)
    want, mask = naive.max_pool(x, 3, 2)
    top_diff = np.random.default_rng(1).normal(size=want.shape)
    (grad,), _ = gradients(it, [x], [top_diff])
    np.testing.assert_allclose(grad, naive.max_pool_gradient(x, mask, top_diff), atol=1e-12)


@pytest.mark.parametrize("method", ["MAX", "AVE"])
def test_global_pooling_follows_the_bottom(method: str) -> None:
    it = lone(pool(f"pool: {method} global_pooling: true"), (2, 3, 4, 5))
    exported = session(it)
    for shape in ((2, 3, 4, 5), (1, 3, 6, 2)):
        (x,) = arrays(shape)
        (got,) = forward(it, [x])
        assert got.shape == (*shape[:2], 1, 1)
        want = x.max((2, 3), keepdims=True) if method == "MAX" else x.mean((2, 3), keepdims=True)
        np.testing.assert_allclose(got, want, atol=1e-12)
        if shape[2:] == (4, 5):
            assert LAYERS.ratio(run_onnx(exported, [x])[0], want) <= 1
    check_gradients(it, arrays((2, 3, 4, 5)))


@pytest.mark.parametrize(
    "text",
    [
        "kernel_size: 3 stride: 2",
        "kernel_size: 3 stride: 2 pad: 2",
        "kernel_size: 2 stride: 3",
        "pool: AVE kernel_size: 3 stride: 2 pad: 1",
        "pool: AVE kernel_size: 4 stride: 3 pad: 3",
        "pool: STOCHASTIC kernel_size: 3 stride: 2",
    ],
)
def test_gradients_equal_finite_differences(text: str) -> None:
    check_gradients(lone(pool(text), (2, 2, 5, 6)), [distinct((2, 2, 5, 6)) + 200])


def test_other_sizes_at_run_time_take_their_own_windows() -> None:
    it = lone(pool("pool: AVE kernel_size: 2 stride: 3"), (1, 1, 5, 5))
    for size in (3, 6, 8):  # a last window is whole, missing, cut
        x = distinct((2, 1, size, size))
        np.testing.assert_allclose(forward(it, [x])[0], naive.ave_pool(x, 2, 3), rtol=1e-12)


@pytest.mark.parametrize(
    "text", ["kernel_size: 3", "kernel_size: 3 pad: 2", "kernel_size: 1 stride: 5", "global_pooling: true"]
)
def test_onnx_indices_become_the_mask(text: str) -> None:
    it = lone(pool(text), (2, 3, 5, 6), tops=2)
    exported = session(it)
    assert has_dynamic_batch(exported)
    for items in (2, 4):
        x = distinct((items, 3, 5, 6))
        for got, want in zip(run_onnx(exported, [x]), forward(it, [x]), strict=True):
            np.testing.assert_array_equal(got, want)


def test_onnx_refuses_random_draws() -> None:
    with pytest.raises(ConversionError, match="draws at random"):
        session(lone(pool("pool: STOCHASTIC kernel_size: 2"), (1, 1, 4, 4), phase="TRAIN"))


def stochastic_test(x: Array, kernel: int, stride: int, least: float | None) -> Array:
    sizes = (x.shape[2], x.shape[3])
    windows = list(naive.pool_windows(sizes, kernel, stride, 0))
    y = np.zeros((*x.shape[:2], *(1 + max(index[axis] for index, _, _ in windows) for axis in (0, 1))))
    for index, slices, _ in windows:
        values = x[(..., *slices)]
        total, squares = values.sum((2, 3)), np.square(values).sum((2, 3))
        if least is None:
            y[(..., *index)] = np.where(total > 0, squares / np.where(total > 0, total, 1), 0)
        else:
            y[(..., *index)] = squares / (least + total)
    return y


@pytest.mark.parametrize(("profile", "least"), [("bvlc", None), ("dec2013", FLT_MIN)])
def test_stochastic_pooling_in_phase_test_is_the_expected_value(profile: str, least: float | None) -> None:
    it = lone(pool("pool: STOCHASTIC kernel_size: 3 stride: 2"), (2, 2, 6, 8), profile=profile)
    (x,) = arrays((2, 2, 6, 8), low=0)
    x[0, 0] = 0
    want = stochastic_test(x, 3, 2, least)
    np.testing.assert_allclose(forward(it, [x])[0], want, atol=1e-12)
    assert LAYERS.ratio(run_onnx(session(it), [x])[0], want) <= 1


def stochastic(profile: str, **state: object) -> Pooling:
    context = Context(phase="TRAIN", profile=profile, state=dict(state))
    it = lone(pool("pool: STOCHASTIC kernel_size: 3 stride: 2"), (2, 2, 6, 8), profile=profile)
    layer = find_layer("Pooling", context)(it.layer.param, context)
    layer.setup([(2, 2, 6, 8)])
    assert isinstance(layer, Pooling)
    return layer


@pytest.mark.parametrize("profile", ["bvlc", "dec2013"])
def test_stochastic_pooling_takes_the_value_where_the_running_sum_reaches_the_draw(profile: str) -> None:
    generator = np.random.default_rng(0)
    u = generator.uniform(0.01, 1, (2, 2, 3, 4))
    u[0, 0, 0, 0] = 1
    values = generator.uniform(0, 1, (2, 2, 6, 8)) * generator.integers(0, 2, (2, 2, 6, 8))
    x = torch.tensor(values, requires_grad=True)
    (y,) = stochastic(profile, draws={"it": u}).forward([x], [])
    want, places = np.zeros(u.shape), np.zeros(u.shape)
    for (h, w), (rows, columns), _ in naive.pool_windows((6, 8), 3, 2, 0):
        for n, c in product(range(2), range(2)):
            window = values[n, c, rows, columns]
            sums = window.ravel().cumsum()
            first = int(np.argmax(sums >= u[n, c, h, w] * sums[-1]))
            want[n, c, h, w] = window.ravel()[first]
            row, column = divmod(first, window.shape[1])
            places[n, c, h, w] = (rows.start + row) * 8 + columns.start + column
    np.testing.assert_array_equal(y.detach().numpy(), want)
    top_diff = generator.normal(size=u.shape)
    y.backward(torch.tensor(top_diff))
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), naive.max_pool_gradient(values, places, top_diff), atol=1e-12)


def test_stochastic_pooling_draws_in_proportion_to_the_values() -> None:
    torch.manual_seed(0)
    x = torch.tensor([1.0, 3.0, 0.0, 6.0]).view(1, 1, 2, 2).expand(4000, 1, 2, 2)
    context = Context(phase="TRAIN")
    it = lone(pool("pool: STOCHASTIC kernel_size: 2"), (1, 1, 2, 2))
    layer = find_layer("Pooling", context)(it.layer.param, context)
    layer.setup([(1, 1, 2, 2)])
    (y,) = layer.forward([x], [])
    shares = [(y == value).double().mean().item() for value in (1, 3, 0, 6)]
    np.testing.assert_allclose(shares, [0.1, 0.3, 0, 0.6], atol=0.03)


def test_windows_beyond_the_limit_of_a_blob_are_not_allocated() -> None:
    window = Window((2**30, 2**30), (1, 1), (2**30 - 1, 2**30 - 1))
    with pytest.raises(ValueError, match="elements of a blob"):
        max_pool(torch.zeros(1, 1, 4, 4), window)


@pytest.mark.parametrize(
    ("text", "shape", "what", "field"),
    [
        ("", (1, 1, 4, 4), "the kernel is given by", "kernel_w"),
        ("kernel_h: 2", (1, 1, 4, 4), "the kernel is given by", "kernel_h"),
        ("kernel_w: 2", (1, 1, 4, 4), "the kernel is given by", "kernel_w"),
        ("kernel_size: 2 kernel_h: 2 kernel_w: 2", (1, 1, 4, 4), "the kernel is given by", "kernel_h"),
        ("kernel_size: 0", (1, 1, 4, 4), "must be positive", "kernel_size"),
        ("kernel_size: 2 stride: 0", (1, 1, 4, 4), "must be positive", "stride"),
        ("kernel_size: 2 stride: 1 stride_h: 1 stride_w: 1", (1, 1, 4, 4), "stride is given by", "stride_h"),
        ("kernel_size: 2 stride_w: 1", (1, 1, 4, 4), "stride is given by", "stride_w"),
        ("kernel_size: 2 pad_h: 1", (1, 1, 4, 4), "pad is given by", "pad_h"),
        ("kernel_size: 2 pad: 2", (1, 1, 4, 4), "is not below kernel", "pad"),
        ("kernel_h: 3 kernel_w: 2 pad: 2", (1, 1, 4, 4), "is not below kernel", "pad"),
        ("kernel_size: 2 pad: 1 pool: STOCHASTIC", (1, 1, 4, 4), "takes no padding", "pad"),
        ("global_pooling: true kernel_size: 2", (1, 1, 4, 4), "takes no kernel size", "kernel_size"),
        ("global_pooling: true pad: 1", (1, 1, 4, 4), "pad 0 and stride 1", "global_pooling"),
        ("global_pooling: true stride: 2", (1, 1, 4, 4), "pad 0 and stride 1", "global_pooling"),
        ("global_pooling: true", (1, 1, 0, 4), "must be positive", "kernel_size"),
    ],
)
def test_refuses_what_caffe_refuses(text: str, shape: Shape, what: str, field: str) -> None:
    said, place = refusal(pool(text), shape)
    assert what in said
    assert place == f"pooling_param.{field}"


def test_refuses_other_ranks_and_masks_of_means() -> None:
    assert refusal(pool("kernel_size: 2"), (1, 4, 4))[1] == "bottom"
    assert refusal(pool("pool: AVE kernel_size: 2"), (1, 1, 4, 4), tops=2)[1] == "top[1]"


class Test2013:
    """pool of December 2013."""

    def pool(self, text: str, shape: Shape) -> Lone:
        return lone(pool(text), shape, profile="dec2013")

    @pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (2, 3), (3, 1), (9, 2), (1, 2)])
    def test_every_tied_maximum_gets_the_whole_gradient(self, kernel: int, stride: int) -> None:
        x = np.random.default_rng(0).integers(0, 3, (2, 2, 8, 9)).astype(float)
        it = self.pool(f"kernel_size: {kernel} stride: {stride}", x.shape)
        want, _ = naive.max_pool(x, kernel, stride)
        np.testing.assert_array_equal(forward(it, [x]), [want])
        top_diff = np.random.default_rng(1).normal(size=want.shape)
        grad = np.zeros(x.shape)
        for index, slices, _ in naive.pool_windows((8, 9), kernel, stride, 0):
            top = (..., *(slice(i, i + 1) for i in index))
            grad[(..., *slices)] += top_diff[top] * (x[(..., *slices)] == want[top])
        np.testing.assert_allclose(gradients(it, [x], [top_diff])[0][0], grad, atol=1e-12)

    def test_gradients_equal_finite_differences_without_ties(self) -> None:
        check_gradients(self.pool("kernel_size: 3 stride: 2", (2, 2, 6, 7)), [distinct((2, 2, 6, 7))])

    def test_ignores_pad(self) -> None:
        it = self.pool("kernel_size: 3 stride: 2 pad: 1", (1, 2, 6, 6))
        x = distinct((1, 2, 6, 6))
        np.testing.assert_array_equal(forward(it, [x])[0], naive.max_pool(x, 3, 2)[0])
        np.testing.assert_array_equal(run_onnx(session(it), [x])[0], naive.max_pool(x, 3, 2)[0])

    @pytest.mark.parametrize("size", [5, 6])
    def test_means_divide_by_the_window_inside(self, size: int) -> None:
        it = self.pool("pool: AVE kernel_size: 2 stride: 3", (1, 2, size, size))
        x = distinct((1, 2, size, size))
        np.testing.assert_allclose(forward(it, [x])[0], naive.ave_pool(x, 2, 3), rtol=1e-12)

    @pytest.mark.parametrize(
        ("text", "what", "field"),
        [
            ("global_pooling: true", "no global_pooling under profile dec2013", "global_pooling"),
            ("kernel_size: 2 round_mode: FLOOR", "no round_mode", "round_mode"),
            ("stride: 2", "kernel_size is 0", "kernel_size"),
        ],
    )
    def test_refuses(self, text: str, what: str, field: str) -> None:
        said, place = refusal(pool(text), (1, 1, 4, 4), profile="dec2013")
        assert what in said
        assert place == f"pooling_param.{field}"
