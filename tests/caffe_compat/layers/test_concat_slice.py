"""Concat and Slice, which undo each other."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import arrays, forward, lone


@pytest.mark.parametrize("axis", ["axis: 0", "axis: 1", "axis: -1", "concat_dim: 2"])
def test_concat_and_slice_are_inverse(axis: str) -> None:
    dim = {"0": 0, "1": 1, "-1": 2, "2": 2}[axis.split()[1]]
    shapes = [tuple(size + extra * (place == dim) for place, size in enumerate((2, 3, 4))) for extra in (0, 1, 2)]
    parts = arrays(*shapes)
    whole = forward(lone(f'type: "Concat" concat_param {{ {axis} }}', *shapes), parts)[0]
    assert np.array_equal(whole, np.concatenate(parts, dim))
    points = " ".join(f"slice_point: {point}" for point in np.cumsum([shape[dim] for shape in shapes])[:-1])
    cut = lone(f'type: "Slice" slice_param {{ {axis.replace("concat", "slice")} {points} }}', whole.shape, tops=3)
    assert all(np.array_equal(a, b) for a, b in zip(forward(cut, [whole]), parts, strict=True))


def test_equal_slices_follow_the_size_at_run_time() -> None:
    it = lone('type: "Slice" slice_param { axis: 2 }', (1, 2, 4), tops=2)
    x = arrays((1, 2, 6))[0]
    assert [top.tolist() for top in forward(it, [x])] == [x[:, :, :3].tolist(), x[:, :, 3:].tolist()]
    with pytest.raises(LayerError, match="equal tops"):
        forward(it, arrays((1, 2, 5)))


def test_a_last_slice_may_be_empty() -> None:
    it = lone('type: "Slice" slice_param { slice_point: 3 }', (2, 3), tops=2)
    assert it.top_shapes == [(2, 3), (2, 0)]


@pytest.mark.parametrize("text", ['type: "Concat" concat_param { axis: 1 concat_dim: 1 }', 'type: "Concat"'])
def test_concat_refuses(text: str) -> None:
    with pytest.raises(LayerError, match=r"both axis and concat_dim|differ only at axis 1"):
        lone(text, (2, 3), (3, 3))


@pytest.mark.parametrize("shapes", [((2, 3), (2, 3, 1)), ((2, 3, 1), (2, 3))])
def test_concat_refuses_other_numbers_of_axes(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(LayerError, match="differ only at axis 1"):
        lone('type: "Concat"', *shapes)


@pytest.mark.parametrize("dim", [2, 4294967295])
def test_concat_dim_is_not_negative(dim: int) -> None:
    with pytest.raises(LayerError, match="concat_dim"):
        lone(f'type: "Concat" concat_param {{ concat_dim: {dim} }}', (2, 3))


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("axis: 1 slice_dim: 1", "both axis and slice_dim"),
        ("slice_point: 1 slice_point: 2", "2 slice_point value"),
        ("slice_point: 0", "must rise"),
        ("slice_point: 7", "slice_point"),
        ("axis: 0", "equal tops"),
    ],
)
def test_slice_refuses(param: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(f'type: "Slice" slice_param {{ {param} }}', (3, 6), tops=2)


def test_slice_refuses_more_tops_than_values() -> None:
    with pytest.raises(LayerError, match="slice_point"):
        lone('type: "Slice" slice_param { slice_point: 1 slice_point: 2 }', (2, 2), tops=3)
