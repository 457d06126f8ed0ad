"""Crop: offsets, axes and bounds."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from caffe_compat.layers.base import Shape
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


def crop(text: str) -> str:
    return f'type: "Crop" crop_param {{ {text} }}'


@pytest.mark.parametrize(
    ("text", "data", "like", "cuts"),
    [
        ("", (2, 3, 5, 6), (2, 9, 3, 4), np.s_[:, :, :3, :4]),
        ("offset: 1", (2, 3, 5, 6), (2, 9, 3, 4), np.s_[:, :, 1:4, 1:5]),
        ("offset: [2, 0]", (2, 3, 5, 6), (2, 9, 3, 4), np.s_[:, :, 2:5, :4]),
        ("axis: 1 offset: [1, 2, 0]", (2, 3, 5, 6), (2, 2, 3, 4), np.s_[:, 1:3, 2:5, :4]),
        ("axis: -1 offset: 2", (2, 3, 5, 6), (2, 3, 5, 4), np.s_[..., 2:]),
        ("axis: 0 offset: [1, 0]", (3, 4), (2, 3), np.s_[1:3, :3]),
        ("axis: 3", (2, 1, 3, 4, 5), (1, 1, 1, 2, 3), np.s_[:, :, :, :2, :3]),
        ("", (2, 3, 5, 6), (2, 9, 3, 4, 7), np.s_[:, :, :3, :4]),
    ],
)
def test_takes_the_part_also_in_onnx(text: str, data: Shape, like: Shape, cuts: tuple[slice, ...]) -> None:
    it = lone(crop(text), data, like)
    x, other = arrays(data, like)
    want = x[cuts]
    assert it.top_shapes == [want.shape]
    np.testing.assert_array_equal(forward(it, [x, other])[0], want)
    np.testing.assert_array_equal(run_onnx(session(it), [x, other])[0], want.astype(np.float32))
    check_gradients(it, [x, other])


def test_the_second_bottom_gets_no_gradient() -> None:
    it = lone(crop(""), (1, 1, 4, 4), (1, 1, 2, 2))
    (grad, none), _ = gradients(it, arrays((1, 1, 4, 4), (1, 1, 2, 2)), [np.ones((1, 1, 2, 2))])
    assert grad.sum() == 4
    assert not none.any()
    assert [it.layer.propagates(bottom) for bottom in (0, 1)] == [True, False]


@pytest.mark.parametrize("axis", [0, 2])
def test_onnx_takes_other_batch_sizes(axis: int) -> None:
    it = lone(crop(f"axis: {axis}"), (2, 3, 5, 6), (2, 3, 3, 4))
    exported = session(it)
    assert has_dynamic_batch(exported)
    x, other = arrays((4, 3, 5, 6), (4, 3, 3, 4))
    np.testing.assert_array_equal(run_onnx(exported, [x, other])[0], x[:, :, :3, :4].astype(np.float32))


def test_sizes_at_run_time_are_checked() -> None:
    it = lone(crop("offset: 1"), (1, 1, 5, 5), (1, 1, 3, 3))
    bottoms = arrays((1, 1, 5, 5), (1, 1, 5, 3))
    with pytest.raises(LayerError, match="axis 2: offset 1"):
        forward(it, bottoms)


@pytest.mark.parametrize(
    ("text", "shapes", "what", "field"),
    [
        ("axis: 4", ((1, 1, 4, 4), (1, 1, 4, 4)), "out of range", "crop_param.axis"),
        ("offset: [0, 0, 0]", ((1, 1, 4, 4), (1, 1, 4, 4)), "3 offsets for 2", "crop_param.offset"),
        ("offset: 2", ((1, 1, 4, 4), (1, 1, 3, 2)), "axis 2: offset 2 + size 3", "crop_param.offset"),
        ("", ((1, 1, 4, 4), (1, 4)), "bottom 1 has 2 axes", "bottom[1]"),
    ],
)
def test_refuses_what_caffe_refuses(text: str, shapes: tuple[Shape, ...], what: str, field: str) -> None:
    said, place = refusal(crop(text), *shapes)
    assert what in said
    assert place == field
