"""SPP against loops."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest

from caffe_compat.errors import ConversionError, LayerError
from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers import naive
from tests.caffe_compat.layers.harness import Array, arrays, check_gradients, forward, lone, run_onnx, session
from tests.caffe_compat.layers.refusals import refusal
from tests.tolerances import LAYERS


def spp(text: str) -> str:
    return f'type: "SPP" spp_param {{ {text} }}'


def pyramid(x: Array, height: int, method: str) -> Array:
    """For square bottoms."""
    tops = []
    for bins in (2**level for level in range(height)):
        kernel = ceil(x.shape[2] / bins)
        pad = (kernel * bins - x.shape[2] + 1) // 2
        y = naive.max_pool(x, kernel, kernel, pad)[0] if method == "MAX" else naive.ave_pool(x, kernel, kernel, pad)
        tops.append(y.reshape(len(x), -1))
    return np.concatenate(tops, 1)


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize(("height", "size"), [(2, 5), (3, 9), (3, 13), (4, 16)])
def test_levels_equal_loops_also_in_onnx(method: str, height: int, size: int) -> None:
    it = lone(spp(f"pool: {method} pyramid_height: {height}"), (2, 3, size, size))
    (x,) = arrays((2, 3, size, size))
    want = pyramid(x, height, method)
    assert it.top_shapes == [want.shape]
    np.testing.assert_allclose(forward(it, [x])[0], want, atol=1e-12)
    assert LAYERS.ratio(run_onnx(session(it), [x])[0], want) <= 1
    check_gradients(it, [x])


def test_one_level_is_not_flattened() -> None:
    it = lone(spp("pyramid_height: 1"), (2, 3, 4, 5))
    (x,) = arrays((2, 3, 4, 5))
    want = x.max((2, 3), keepdims=True)
    np.testing.assert_array_equal(forward(it, [x])[0], want)
    np.testing.assert_array_equal(run_onnx(session(it), [x])[0], want.astype(np.float32))


def test_levels_follow_the_size_at_run_time() -> None:
    it = lone(spp("pyramid_height: 2"), (1, 2, 8, 8))
    (x,) = arrays((1, 2, 6, 6))
    np.testing.assert_array_equal(forward(it, [x])[0], pyramid(x, 2, "MAX"))
    with pytest.raises(LayerError, match="level 1 of a 1 x 1 bottom"):
        forward(it, arrays((1, 2, 1, 1)))


def test_stochastic_levels_without_padding() -> None:
    it = lone(spp("pool: STOCHASTIC pyramid_height: 2"), (1, 2, 4, 4))
    (x,) = arrays((1, 2, 4, 4), low=0)
    quarters = x.reshape(1, 2, 2, 2, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(1, 2, 2, 2, 4)
    small = (np.square(quarters).sum(-1) / quarters.sum(-1)).reshape(1, -1)
    whole = np.square(x).sum((2, 3)) / x.sum((2, 3))
    np.testing.assert_allclose(forward(it, [x])[0], np.concatenate([whole, small], 1))
    with pytest.raises(ConversionError, match="stochastic"):
        session(it)


@pytest.mark.parametrize(
    ("text", "shape", "what", "field"),
    [
        ("", (1, 1, 4, 4), "pyramid_height is 0", "spp_param.pyramid_height"),
        ("pyramid_height: 3", (1, 1, 2, 2), "level 2 of a 2 x 2 bottom", "spp_param.pyramid_height"),
        ("pyramid_height: 4294967295", (1, 1, 9, 9), "level 3 of a 9 x 9 bottom", "spp_param.pyramid_height"),
        (
            "pyramid_height: 2 pool: STOCHASTIC",
            (1, 1, 5, 5),
            "5 x 5 bottom needs pad (1, 1)",
            "spp_param.pool",
        ),
        ("pyramid_height: 1", (1, 4, 4), "has shape (1, 4, 4)", "bottom"),
        ("pyramid_height: 1", (1, 1, 0, 4), "has shape (1, 1, 0, 4)", "bottom"),
    ],
)
def test_refuses_what_caffe_refuses(text: str, shape: Shape, what: str, field: str) -> None:
    said, place = refusal(spp(text), shape)
    assert what in said
    assert place == field
