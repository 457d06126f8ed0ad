"""Normalize against its formula."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers.harness import arrays, check_gradients, forward, gradients, lone

SHAPES: list[Shape] = [(2, 3), (2, 3, 4), (2, 3, 4, 5)]


def text(spatial: bool, shared: bool, eps: float = 1e-10) -> str:
    fields = f"across_spatial: {spatial} channel_shared: {shared} eps: {eps}".lower()
    return f'type: "Normalize" norm_param {{ {fields} }}'


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("eps", [1e-10, 0.5])
def test_top(shape: Shape, spatial: bool, shared: bool, eps: float) -> None:
    it = lone(text(spatial, shared, eps), shape)
    assert it.node.blob_shapes == ((() if shared else (3,)),)
    (x,), (scale,) = arrays(shape), it.blobs()
    axes = tuple(range(1, len(shape))) if spatial else (1,)
    norm = np.sqrt((x**2).sum(axes, keepdims=True) + np.float32(eps))
    along = scale if shared else scale.reshape(-1, *[1] * (len(shape) - 2))
    np.testing.assert_allclose(forward(it, [x], [scale])[0], x / norm * along, rtol=1e-9)


@pytest.mark.parametrize("spatial", [True, False])
def test_gradients_with_one_scale_are_the_true_ones(spatial: bool) -> None:
    it = lone(text(spatial, True, 0.1), SHAPES[-1])
    check_gradients(it, arrays(SHAPES[-1]), it.blobs())


@pytest.mark.parametrize("spatial", [True, False])
def test_the_gradient_with_many_scales_projects_without_them(spatial: bool) -> None:
    shape = SHAPES[-1]
    it = lone(text(spatial, False, 0.1), shape)
    x, g = arrays(shape, shape)
    (scale,) = it.blobs()
    (got,), (got_scale,) = gradients(it, [x], [g], [scale])
    axes = (1, 2, 3) if spatial else (1,)
    norm = np.sqrt((x**2).sum(axes, keepdims=True) + np.float32(0.1))
    along = scale.reshape(3, 1, 1)
    np.testing.assert_allclose(got, along * (g - x * (x * g).sum(axes, keepdims=True) / norm**2) / norm, rtol=1e-9)
    np.testing.assert_allclose(got_scale, (g * x / norm).sum((0, 2, 3)), rtol=1e-9)
    equal = lone(text(spatial, True, 0.1), shape)
    (true,), _ = gradients(equal, [x], [g], [np.array(2.0)])
    (same,), _ = gradients(it, [x], [g], [np.full(3, 2.0)])
    np.testing.assert_allclose(same, true, rtol=1e-9)


def test_the_scale_starts_at_one_unless_filled() -> None:
    plain = lone(text(True, False), (2, 3)).layer.fillers()
    assert [(filler.type, filler.value) for filler in plain] == [("constant", 1)]
    filled = lone('type: "Normalize" norm_param { scale_filler { value: 20 } }', (2, 3)).layer.fillers()
    assert [filler.value for filler in filled] == [20]


def test_works_in_place() -> None:
    assert lone(text(True, True), (2, 3), inplace=True).graph.outputs == ("in0",)


@pytest.mark.parametrize(("shape", "message"), [((3,), "at least 2"), ((1, 1, 1, 1, 2), "allows 4")])
def test_refused(shape: Shape, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(text(True, True), shape)
