"""Lstm against its loops, with hand-written backward pass as in lstm_layer.cu."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import ConversionError, LayerError
from tests.caffe_compat.layers.harness import (
    Array,
    Lone,
    arrays,
    check_gradients,
    forward,
    gradients,
    lone,
    run_onnx,
    session,
)
from tests.caffe_compat.layers.refusals import refusal
from tests.tolerances import LAYERS

UNITS = 3


def lstm(shape: tuple[int, ...], text: str = "", indicators: bool = False) -> Lone:
    shapes = [shape, (shape[0],)] if indicators else [shape]
    return lone(f'type: "Lstm" lstm_param {{ num_output: {UNITS} {text} }}', *shapes, dialect="ctpn")


def blobs_of(it: Lone) -> list[Array]:
    return [blob - 1 for blob in it.blobs()]


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


class Reference:
    """One pass over x (T, N, I), and back."""

    def __init__(self, x: Array, blobs: list[Array], cont: Array, state: tuple[Array, Array] | None = None) -> None:
        w_i, w_h, bias = blobs
        zero = np.zeros((x.shape[1], UNITS))
        self.x, self.w_i, self.w_h, self.cont = x, w_i, w_h, cont
        self.h, self.c = [state[0] if state else zero], [state[1] if state else zero]
        self.gates = []
        for t in range(len(x)):
            g = x[t] @ w_i.T + bias + cont[t] * (self.h[-1] @ w_h.T)
            gates = np.concatenate([sigmoid(g[:, : 3 * UNITS]), np.tanh(g[:, 3 * UNITS :])], 1)
            i, f, o, new = np.split(gates, 4, 1)
            self.gates.append(gates)
            self.c.append(cont[t] * f * self.c[-1] + i * new)
            self.h.append(o * np.tanh(self.c[-1]))

    @property
    def top(self) -> Array:
        return np.stack(self.h[1:])

    def back(self, top_diff: Array, clip: float) -> tuple[Array, list[Array]]:
        dh_next, dc = np.zeros(self.h[0].shape), np.zeros(self.c[0].shape)
        dx, d_i, d_h, d_b = (np.zeros(a.shape) for a in (self.x, self.w_i, self.w_h, np.zeros(4 * UNITS)))
        for t in reversed(range(len(self.x))):
            i, f, o, new = np.split(self.gates[t], 4, 1)
            dh, tanh_c = top_diff[t] + dh_next, np.tanh(self.c[t + 1])
            dc = dc + dh * o * (1 - tanh_c**2)
            of_gates = [dc * new, self.cont[t] * dc * self.c[t], dh * tanh_c, dc * i]
            slopes = [i * (1 - i), f * (1 - f), o * (1 - o), 1 - new**2]
            pre = np.concatenate([d * s for d, s in zip(of_gates, slopes, strict=True)], 1)
            pre = np.clip(pre, -clip, clip) if clip else pre
            dc = self.cont[t] * dc * f
            dh_next = self.cont[t] * (pre @ self.w_h)
            dx[t] = pre @ self.w_i
            d_i, d_h, d_b = d_i + pre.T @ self.x[t], d_h + pre.T @ self.h[t], d_b + pre.sum(0)
        return dx, [d_i, d_h, d_b]


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("streams", [1, 2])
def test_sequences(streams: int, clip: float) -> None:
    it = lstm((5, streams, 4), f"clipping_threshold: {clip}")
    (x, top_diff), blobs = arrays((5, streams, 4), (5, streams, UNITS)), blobs_of(it)
    want = Reference(x, blobs, np.array([0.0, 1, 1, 1, 1]))
    assert it.top_shapes == [(5, streams, UNITS)]
    assert it.node.blob_shapes == ((12, 4), (12, 3), (12,))
    np.testing.assert_allclose(forward(it, [x], blobs)[0], want.top, atol=1e-12)
    (dx,), diffs = gradients(it, [x], [top_diff], blobs)
    by_x, by_blobs = want.back(top_diff, it.layer.clip)
    np.testing.assert_allclose(dx, by_x, atol=1e-12)
    for got, array in zip(diffs, by_blobs, strict=True):
        np.testing.assert_allclose(got, array, atol=1e-12)
    if not clip:
        check_gradients(it, [x], blobs)


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_indicators_carry_the_state_on(clip: float) -> None:
    it = lstm((4, 5), f"clipping_threshold: {clip}", indicators=True)
    (x, top_diff), blobs = arrays((4, 5), (4, UNITS)), blobs_of(it)
    cont = np.array([1.0, 1, 0, 1])
    first = Reference(x[:, None], blobs, cont)
    np.testing.assert_allclose(forward(it, [x, cont], blobs)[0], first.top[:, 0], atol=1e-12)
    second = Reference(x[:, None], blobs, cont, (first.h[-1], first.c[-1]))
    (dx, none), diffs = gradients(it, [x, cont], [top_diff], blobs)
    by_x, by_blobs = second.back(top_diff[:, None], it.layer.clip)
    np.testing.assert_allclose(dx, by_x[:, 0], atol=1e-12)
    for got, array in zip(diffs, by_blobs, strict=True):
        np.testing.assert_allclose(got, array, atol=1e-12)
    assert not none.any()
    it.layer.reset()  # type: ignore[attr-defined]
    np.testing.assert_allclose(forward(it, [x, cont], blobs)[0], first.top[:, 0], atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 4), (6, 2, 2, 1)])
def test_flat_bottoms_hold_batch_size_streams(shape: tuple[int, ...]) -> None:
    flat, deep = lstm(shape, "batch_size: 2"), lstm((3, 2, 4))
    (x,), blobs = arrays(shape), blobs_of(deep)
    assert flat.top_shapes == [(6, UNITS)]
    want = forward(deep, [x.reshape(3, 2, 4)], blobs)[0]
    np.testing.assert_allclose(forward(flat, [x], blobs)[0], want.reshape(6, UNITS), atol=1e-12)


@pytest.mark.parametrize(("shape", "text"), [((5, 2, 4), ""), ((6, 4), "batch_size: 2"), ((5, 4), "")])
def test_onnx_runtime_agrees(shape: tuple[int, ...], text: str) -> None:
    it = lstm(shape, text)
    (x,), blobs = arrays(shape), blobs_of(it)
    for opset in (13, 17, 21):
        got = run_onnx(session(it, blobs, opset), [x])[0]
        assert LAYERS.ratio(got, forward(it, [x], blobs, np.float32)[0]) <= 1


def test_a_state_that_is_carried_has_no_form_in_onnx() -> None:
    it = lstm((4, 5), indicators=True)
    with pytest.raises(ConversionError, match="carries its state"):
        session(it, blobs_of(it))


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        ("num_output: 0", ((4, 2, 3),), "num_output is 0"),
        ("num_output: 3 batch_size: 0", ((4, 3),), "batch_size is 0"),
        ("num_output: 3", ((4,),), "it must be"),
        ("num_output: 3", ((4, 2, 3, 1, 1),), "it must be"),
        ("num_output: 3", ((0, 2, 3),), "it must be"),
        ("num_output: 3 batch_size: 3", ((4, 3),), "4 steps of 3 streams"),
    ],
)
def test_refused(text: str, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    assert message in refusal(f'type: "Lstm" lstm_param {{ {text} }}', *shapes, dialect="ctpn")[0]


@pytest.mark.parametrize("shapes", [((4, 2, 3), (4,)), ((4, 3), (3,)), ((4, 3), (4, 2)), ((4, 3), (1, 4))])
def test_indicators_are_for_one_stream(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(LayerError, match="indicators of shape"):
        lone('type: "Lstm" lstm_param { num_output: 3 }', *shapes, dialect="ctpn")


def test_other_inputs_at_run_time() -> None:
    it = lstm((4, 2, 3))
    with pytest.raises(LayerError, match="4 values a step; the net was built for 3"):
        forward(it, [np.zeros((4, 2, 4))], blobs_of(it))
