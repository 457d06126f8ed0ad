"""Interp against the loops of interp.cpp, written anew."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import Array, arrays, check_gradients, forward, lone, run_onnx, session
from tests.caffe_compat.layers.refusals import refusal
from tests.tolerances import LAYERS


def interp(text: str) -> str:
    return f'type: "Interp" interp_param {{ {text} }}'


def resized(x: Array, size: tuple[int, int]) -> Array:
    out = np.zeros((*x.shape[:2], *size))
    steps = [(n - 1) / (m - 1) if m > 1 else 0 for n, m in zip(x.shape[2:], size, strict=True)]
    for i, j in np.ndindex(size):
        y, z = i * steps[0], j * steps[1]
        top, left = int(y), int(z)
        below, beside = min(top + 1, x.shape[2] - 1), min(left + 1, x.shape[3] - 1)
        upper = x[:, :, top, left] * (1 - z + left) + x[:, :, top, beside] * (z - left)
        lower = x[:, :, below, left] * (1 - z + left) + x[:, :, below, beside] * (z - left)
        out[:, :, i, j] = upper * (1 - y + top) + lower * (y - top)
    return out


CASES = [
    ("height: 9 width: 11", (2, 3, 4, 5), (9, 11)),
    ("height: 4 width: 3", (2, 2, 9, 10), (4, 3)),
    ("height: 1 width: 1", (1, 2, 5, 4), (1, 1)),
    ("height: 5 width: 6", (2, 3, 1, 1), (5, 6)),
    ("height: 5 width: 6", (2, 3, 5, 6), (5, 6)),
    ("zoom_factor: 8", (1, 2, 3, 4), (17, 25)),
    ("shrink_factor: 2", (1, 2, 9, 8), (5, 4)),
    ("shrink_factor: 3 zoom_factor: 2", (1, 2, 10, 7), (7, 5)),
    ("height: 6 width: 7 shrink_factor: 3 zoom_factor: 2", (1, 2, 10, 7), (6, 7)),
    ("height: 6 width: 7 zoom_factor: 2", (1, 2, 3, 3), (5, 5)),
    ("height: 6 zoom_factor: 2", (1, 2, 3, 3), (5, 5)),
    ("height: 6 width: 7 shrink_factor: 2", (1, 2, 3, 3), (2, 2)),
    ("zoom_factor: 2 pad_beg: -1 pad_end: -2", (1, 2, 8, 9), (9, 11)),
    ("zoom_factor: 1 pad_end: -2", (1, 2, 8, 9), (6, 7)),
]


@pytest.mark.parametrize(("text", "shape", "size"), CASES)
def test_values_gradients_and_onnx(text: str, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    it = lone(interp(text), shape)
    (x,) = arrays(shape)
    p = it.layer.p
    cut = x[:, :, -p.pad_beg : shape[2] + p.pad_end, -p.pad_beg : shape[3] + p.pad_end]
    assert it.top_shapes == [(*shape[:2], *size)]
    np.testing.assert_allclose(forward(it, [x])[0], resized(cut, size), atol=1e-6)
    check_gradients(it, [x])
    for opset in (13, 17, 18, 21):
        for bottom in (x, np.concatenate([x, x])):
            got = run_onnx(session(it, opset=opset), [bottom])[0]
            assert LAYERS.ratio(got, forward(it, [bottom], dtype=np.float32)[0]) <= 1


@pytest.mark.parametrize(
    ("text", "what", "field"),
    [
        ("pad_beg: 1 height: 2 width: 2", "pad_beg 1 is above 0", "interp_param.pad_beg"),
        ("pad_end: 1 height: 2 width: 2", "pad_end 1 is above 0", "interp_param.pad_end"),
        ("zoom_factor: 0", "zoom_factor 0 must be at least 1", "interp_param.zoom_factor"),
        ("shrink_factor: -1", "shrink_factor -1 must be at least 1", "interp_param.shrink_factor"),
        ("", "no size", "interp_param"),
        ("height: 3", "no size", "interp_param"),
    ],
)
def test_refused(text: str, what: str, field: str) -> None:
    got = refusal(interp(text), (1, 1, 4, 4))
    assert what in got[0]
    assert got[1] == field


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("zoom_factor: 2", (1, 4, 4), "four axes"),
        ("zoom_factor: 2 pad_beg: -4", (1, 1, 4, 4), "nothing is left"),
        ("height: 0 width: 2", (1, 1, 4, 4), "must be > 0"),
    ],
)
def test_shapes_that_are_refused(text: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(interp(text), shape)
