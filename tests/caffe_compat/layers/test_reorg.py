"""Reorg against Darknet's index formula."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers.harness import Array, arrays, forward, lone
from tests.caffe_compat.layers.refusals import refusal


def reference(x: Array, stride: int, reverse: bool) -> Array:
    """One element at a time, in flat memory."""
    n, channels, height, width = x.shape
    inner = channels // stride**2
    flat, out = x.ravel(), np.zeros(x.size)
    for index in range(x.size):
        b, k, j, i = np.unravel_index(index, x.shape)
        offset, c = divmod(int(k), inner)
        row, column = j * stride + offset // stride, i * stride + offset % stride
        other = column + width * stride * (row + height * stride * (c + inner * b))
        if reverse:
            out[other] = flat[index]
        else:
            out[index] = flat[other]
    if reverse:
        return out.reshape(n, inner, height * stride, width * stride)
    return out.reshape(n, channels * stride**2, height // stride, width // stride)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("shape", "stride"), [((2, 8, 4, 6), 2), ((1, 9, 6, 3), 3), ((2, 4, 2, 2), 1)])
@pytest.mark.parametrize("dialect", ["yolo9000", "mobilenet-yolo"])
def test_places(shape: Shape, stride: int, reverse: bool, dialect: str) -> None:
    (x,) = arrays(shape)
    fields = f"stride: {stride} reverse: {str(reverse).lower()}"
    it = lone(f'type: "Reorg" reorg_param {{ {fields} }}', shape, dialect=dialect)
    want = reference(x, stride, reverse)
    assert it.top_shapes == [want.shape]
    np.testing.assert_array_equal(forward(it, [x])[0], want)


def test_the_stride_is_2_where_a_fork_says_so() -> None:
    (x,) = arrays((1, 4, 4, 4))
    np.testing.assert_array_equal(
        forward(lone('type: "Reorg"', x.shape, dialect="yolo9000"), [x])[0], reference(x, 2, False)
    )
    message, field = refusal('type: "Reorg"', x.shape, dialect="mobilenet-yolo")
    assert (message, field) == ("the stride is missing", "reorg_param.stride")


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ("stride: 0", (1, 4, 4, 4), "stride is 0"),
        ("stride: -1", (1, 4, 4, 4), "stride is -1"),
        ("stride: 2", (1, 6, 4, 4), "6 channels are no multiple of stride\\^2 = 4"),
        ("stride: 2", (1, 4, 4, 5), "4 x 5 is no multiple of stride 2"),
        ("stride: 2", (4, 4, 4), "four axes"),
    ],
)
def test_refused(fields: str, shape: Shape, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(f'type: "Reorg" reorg_param {{ {fields} }}', shape)
