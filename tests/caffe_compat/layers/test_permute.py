"""Permute."""

from __future__ import annotations

import numpy as np
import pytest

from tests.caffe_compat.layers.harness import arrays, forward, gradients, lone
from tests.caffe_compat.layers.refusals import refusal

SHAPE = (2, 3, 4, 5)


def text(*order: int) -> str:
    return f'type: "Permute" permute_param {{ {" ".join(f"order: {axis}" for axis in order)} }}'


@pytest.mark.parametrize(
    ("order", "whole"),
    [
        ((0, 2, 3, 1), (0, 2, 3, 1)),
        ((3,), (3, 0, 1, 2)),
        ((2, 0), (2, 0, 1, 3)),
        ((), (0, 1, 2, 3)),
        ((0, 1), (0, 1, 2, 3)),
    ],
)
def test_axes_that_are_left_out_follow_in_order(order: tuple[int, ...], whole: tuple[int, ...]) -> None:
    (x,) = arrays(SHAPE)
    it = lone(text(*order), SHAPE)
    want = x.transpose(whole)
    assert it.top_shapes == [want.shape]
    np.testing.assert_array_equal(forward(it, [x])[0], want)
    (d,) = arrays(want.shape, seed=1)
    (got,), _ = gradients(it, [x], [d])
    np.testing.assert_array_equal(got, d.transpose(np.argsort(whole)))


@pytest.mark.parametrize(
    ("order", "what", "field"),
    [
        ((0, 4), "order names axis 4; the bottom has 4 axes", "permute_param.order[1]"),
        ((1, 2, 1), "order names axis 1 twice", "permute_param.order[2]"),
    ],
)
def test_refused(order: tuple[int, ...], what: str, field: str) -> None:
    assert refusal(text(*order), SHAPE) == (what, field)
