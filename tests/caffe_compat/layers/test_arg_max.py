from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers.harness import Array, arrays, forward, lone, run_onnx, session

SHAPE = (2, 4, 3)


def naive(row: Array, top_k: int) -> list[tuple[float, int]]:
    """(value, index) pairs in Caffe's order: std::greater on pairs."""
    return sorted(((float(value), index) for index, value in enumerate(row)), reverse=True)[:top_k]


def ties(shape: Shape) -> Array:
    """Few different values, so that many are equal."""
    return np.round(arrays(shape)[0])


@pytest.mark.parametrize("top_k", [1, 5, 12])
@pytest.mark.parametrize("values", [False, True])
def test_over_whole_items(top_k: int, values: bool) -> None:
    it = lone(f'type: "ArgMax" argmax_param {{ top_k: {top_k} out_max_val: {str(values).lower()} }}', SHAPE)
    x = ties(SHAPE)
    want = []
    for item in x:
        pairs = naive(item.ravel(), top_k)
        want.append([[index for _, index in pairs]] + [[value for value, _ in pairs]] * values)
    assert forward(it, [x])[0].tolist() == want
    assert run_onnx(session(it), [x])[0].tolist() == want


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("values", [False, True])
def test_along_an_axis(axis: int, top_k: int, values: bool) -> None:
    param = f"axis: {axis} top_k: {top_k} out_max_val: {str(values).lower()}"
    it = lone(f'type: "ArgMax" argmax_param {{ {param} }}', SHAPE)
    x = ties(SHAPE)
    want = np.apply_along_axis(lambda row: [pair[not values] for pair in naive(row, top_k)], axis, x)
    assert np.array_equal(forward(it, [x])[0], want)
    assert np.array_equal(run_onnx(session(it), [x])[0], want)


@pytest.mark.parametrize(
    ("shape", "top"), [((3,), (3, 1, 1)), ((3, 2), (3, 1, 1)), (SHAPE, (2, 1, 1)), ((2, 3, 4, 5), (2, 1, 1, 1))]
)
def test_tops_have_at_least_three_axes(shape: Shape, top: Shape) -> None:
    assert lone('type: "ArgMax"', shape).top_shapes == [top]


@pytest.mark.parametrize("param", ["top_k: 0", "top_k: 13", "axis: 1 top_k: 5", "axis: 3"])
def test_what_is_refused(param: str) -> None:
    with pytest.raises(LayerError, match=r"top_k|axis"):
        lone(f'type: "ArgMax" argmax_param {{ {param} }}', SHAPE)
