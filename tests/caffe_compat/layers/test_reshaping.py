"""Layers that only rearrange: Flatten, Reshape, Tile, Split."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers.harness import arrays, forward, gradients, lone

SHAPE = (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("param", "top"),
    [
        ("", (2, 60)),
        ("axis: 0", (120,)),
        ("axis: 0 end_axis: 1", (6, 4, 5)),
        ("axis: -2", (2, 3, 20)),
        ("axis: 2 end_axis: 2", SHAPE),
        ("axis: 2 end_axis: 1", (2, 3, 1, 4, 5)),
    ],
)
def test_flatten(param: str, top: Shape) -> None:
    it = lone(f'type: "Flatten" flatten_param {{ {param} }}', SHAPE)
    (x,) = arrays(SHAPE)
    assert np.array_equal(forward(it, [x])[0], x.reshape(top))


def test_flatten_in_2013_has_four_axes() -> None:
    assert lone('type: "Flatten"', SHAPE, profile="dec2013").top_shapes == [(2, 60, 1, 1)]


@pytest.mark.parametrize(
    ("param", "top"),
    [
        ("shape { dim: 0 dim: 0 dim: -1 }", (2, 3, 20)),
        ("shape { dim: 6 dim: -1 }", (6, 20)),
        ("shape { dim: -1 } axis: 1", (2, 60)),
        ("shape { dim: -1 } axis: 1 num_axes: 2", (2, 12, 5)),
        ("shape { dim: 2 dim: 2 } axis: 2 num_axes: 1", (2, 3, 2, 2, 5)),
        ("shape { dim: 1 dim: 1 } axis: -1", (*SHAPE, 1, 1)),
        ("shape { dim: 1 } axis: 0 num_axes: 0", (1, *SHAPE)),
        ("shape { dim: 0 dim: 12 } axis: 1 num_axes: 2", None),
        ("shape { dim: 0 dim: 4 } axis: 1 num_axes: 2", SHAPE),
        ("shape { dim: -1 dim: 0 } axis: 0 num_axes: 2", (2, 3, 4, 5)),
    ],
)
def test_reshape(param: str, top: Shape | None) -> None:
    text = f'type: "Reshape" reshape_param {{ {param} }}'
    if top is None:
        with pytest.raises(LayerError, match="the bottom"):
            lone(text, SHAPE)
        return
    it = lone(text, SHAPE)
    (x,) = arrays(SHAPE)
    assert np.array_equal(forward(it, [x])[0], x.reshape(top))


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("shape { dim: -1 dim: -1 }", "more than one -1"),
        ("shape { dim: -2 dim: -60 }", ">= -1"),
        ("shape { dim: 7 }", "7 values"),
        ("shape { dim: 7 dim: -1 }", "no multiple"),
        ("shape { dim: 120 dim: 1 dim: 1 dim: 1 dim: 0 }", "lacks"),
        ("axis: 5", "axis 5"),
        ("axis: -6", "axis -6"),
        ("axis: 3 num_axes: 2", "num_axes 2"),
        ("num_axes: -2", "num_axes -2"),
    ],
)
def test_reshape_refuses(param: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(f'type: "Reshape" reshape_param {{ {param} }}', SHAPE)


def test_reshape_refuses_empty_bottoms() -> None:
    with pytest.raises(LayerError, match="holds no values"):
        lone('type: "Reshape" reshape_param { shape { dim: 0 dim: -1 } }', (0, 3))


@pytest.mark.parametrize(("axis", "dim"), [(0, 0), (1, 1), (-1, 3)])
def test_tile(axis: int, dim: int) -> None:
    it = lone(f'type: "Tile" tile_param {{ axis: {axis} tiles: 3 }}', SHAPE)
    (x,) = arrays(SHAPE)
    top = forward(it, [x])[0]
    assert np.array_equal(top, np.concatenate([x] * 3, dim))
    found = gradients(it, [x], [top])[0][0]
    np.testing.assert_allclose(found, 3 * x, rtol=1e-12)


@pytest.mark.parametrize("param", ["axis: 4 tiles: 2", "axis: 1", "tiles: 0", "tiles: -1"])
def test_tile_refuses(param: str) -> None:
    with pytest.raises(LayerError, match=r"tiles|axis"):
        lone(f'type: "Tile" tile_param {{ {param} }}', SHAPE)


def test_split_adds_gradients_and_keeps_tops_apart() -> None:
    it = lone('type: "Split"', (3,), tops=3)
    x, *diffs = arrays((3,), (3,), (3,), (3,))
    assert all(np.array_equal(top, x) for top in forward(it, [x]))
    np.testing.assert_allclose(gradients(it, [x], diffs)[0][0], sum(diffs), rtol=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        'type: "Flatten"',
        'type: "Reshape" reshape_param { shape { dim: 0 dim: -1 } }',
        'type: "Tile" tile_param { tiles: 1 }',
        'type: "Split"',
    ],
)
def test_refuses_in_place(text: str) -> None:
    with pytest.raises(LayerError, match="in place"):
        lone(text, SHAPE, inplace=True)
