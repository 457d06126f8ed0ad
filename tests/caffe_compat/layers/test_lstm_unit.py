"""LSTMUnit: value, Caffe's own gradient of the forget gate, ONNX, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import (
    Array,
    arrays,
    check_gradients,
    forward,
    gradients,
    lone,
    run_onnx,
    session,
)

N, D = 3, 4
SHAPES = ((1, N, D), (1, N, 4 * D), (1, N))
TEXT = 'type: "LSTMUnit"'


def bottoms(cont: list[float]) -> list[Array]:
    cells, gates = arrays(*SHAPES[:2])
    return [cells, gates, np.array([cont])]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("cont", [[0.0, 1.0, 1.0], [0.5, 2.0, 0.0]])
def test_value(cont: list[float]) -> None:
    cells, gates, indicators = bottoms(cont)
    i, f, o, g = np.split(gates, 4, axis=2)
    c = indicators[:, :, None] * sigmoid(f) * cells + sigmoid(i) * np.tanh(g)
    it = lone(TEXT, *SHAPES, tops=2)
    got = forward(it, [cells, gates, indicators])
    assert it.top_shapes == [SHAPES[0], SHAPES[0]]
    np.testing.assert_allclose(got[0], c)
    np.testing.assert_allclose(got[1], sigmoid(o) * np.tanh(c))


def test_gradient_is_the_derivative_for_indicators_0_and_1() -> None:
    check_gradients(lone(TEXT, *SHAPES, tops=2), bottoms([0.0, 1.0, 1.0]))


def test_gradient_of_the_forget_gate_for_other_indicators() -> None:
    cells, gates, indicators = bottoms([0.5, 0.5, 0.5])
    it = lone(TEXT, *SHAPES, tops=2)
    ones, nothing = np.ones(SHAPES[0]), np.zeros(SHAPES[0])
    (_, grad, none), _ = gradients(it, [cells, gates, indicators], [ones, nothing])
    gate = 0.5 * sigmoid(gates[:, :, D : 2 * D])
    np.testing.assert_allclose(grad[:, :, D : 2 * D], cells * gate * (1 - gate))
    assert not none.any()


def test_a_new_sequence_forgets_what_is_not_finite() -> None:
    cells, gates, indicators = bottoms([0.0, 1.0, 1.0])
    gates[0, 0, D : 2 * D] = np.nan
    assert np.isfinite(forward(lone(TEXT, *SHAPES, tops=2), [cells, gates, indicators])[0]).all()


def test_onnx() -> None:
    it, values = lone(TEXT, *SHAPES, tops=2), bottoms([0.0, 1.0, 0.5])
    for got, want in zip(run_onnx(session(it), values), forward(it, values), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 3, 4), (1, 3, 12), (1, 3)), "12 gate values for 4 units"),
        (((1, 3, 4), (1, 2, 16), (1, 3)), "number of streams"),
        (((2, 3, 4), (2, 3, 16), (2, 3)), "start with 1"),
        (((1, 3, 4), (1, 3, 16), (1, 3, 1)), "must have 2 axes"),
        (((3, 4), (1, 3, 16), (1, 3)), "must have 3 axes"),
    ],
)
def test_refused(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(TEXT, *shapes, tops=2)
